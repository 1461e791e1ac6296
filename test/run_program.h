// Runs the built program as a user's shell would.
#pragma once

#include <sys/wait.h>

#include <cstdio>
#include <memory>
#include <stdexcept>
#include <string>

namespace sinklora::test {

struct ProgramRun {
  int exit_code = -1;
  std::string output;  // standard output and standard error, as they came
};

// `arguments` as typed after the program's name, quoted for the shell.
inline ProgramRun run_program(const std::string& arguments) {
  const std::string command = "'" SINKLORA_PROGRAM "' " + arguments + " 2>&1 </dev/null";
  std::FILE* pipe = ::popen(command.c_str(), "r");
  if (!pipe) throw std::runtime_error("cannot start a shell");
  ProgramRun run;
  char buffer[4096];
  for (size_t got; (got = std::fread(buffer, 1, sizeof buffer, pipe)) > 0;) run.output.append(buffer, got);
  const int status = ::pclose(pipe);
  run.exit_code = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  return run;
}

}  // namespace sinklora::test
