// Runs the built program as a user's shell would.
#pragma once

#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <memory>
#include <stdexcept>
#include <string>

namespace sinklora::test {

struct ProgramRun {
  int exit_code = -1;
  std::string output;  // standard output and standard error, as they came
};

// `arguments` as typed after the program's name, quoted for the shell; `input` is the file it reads as
// standard input.
inline ProgramRun run_program(const std::string& arguments, const std::string& input = "/dev/null") {
  const std::string command = "'" SINKLORA_PROGRAM "' " + arguments + " 2>&1 <'" + input + "'";
  std::FILE* pipe = ::popen(command.c_str(), "r");
  if (!pipe) throw std::runtime_error("cannot start a shell");
  ProgramRun run;
  char buffer[4096];
  for (size_t got; (got = std::fread(buffer, 1, sizeof buffer, pipe)) > 0;) run.output.append(buffer, got);
  const int status = ::pclose(pipe);
  run.exit_code = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  return run;
}

// The program under way. It does not outlive this object.
class RunningProgram {
 public:
  // `variables` as for env(1); both its outputs go to the file `output`.
  explicit RunningProgram(const std::string& arguments, const std::string& output = "/dev/null",
                          const std::string& variables = "") {
    const std::string command =
        "exec env " + variables + " '" SINKLORA_PROGRAM "' " + arguments + " >" + output + " 2>&1 </dev/null";
    process_ = ::fork();
    if (process_ < 0) throw std::runtime_error("cannot fork");
    if (process_ > 0) return;
    ::execl("/bin/sh", "sh", "-c", command.c_str(), nullptr);
    ::_exit(127);
  }
  ~RunningProgram() { kill(); }
  RunningProgram(const RunningProgram&) = delete;
  RunningProgram& operator=(const RunningProgram&) = delete;

  bool running() {
    if (process_ > 0 && ::waitpid(process_, &status_, WNOHANG) == process_) process_ = 0;
    return process_ > 0;
  }
  pid_t id() const { return process_; }
  // Waits for its end; -1: it takes longer, or a signal ended it.
  int exit_code(double seconds) {
    for (int i = 0; running(); ++i, ::usleep(5000))
      if (i * 0.005 > seconds) return -1;
    return WIFEXITED(status_) ? WEXITSTATUS(status_) : -1;
  }
  // Whether it was still running: false when it had come to its end before.
  bool kill() {
    if (process_ > 0) {
      ::kill(process_, SIGKILL);
      ::waitpid(process_, &status_, 0);
      process_ = 0;
    }
    return WIFSIGNALED(status_) && WTERMSIG(status_) == SIGKILL;
  }

 private:
  pid_t process_ = 0;
  int status_ = 0;
};

}  // namespace sinklora::test
