// sinklora VERB [options]: parse, call one function below, turn errors into one line and an exit code.
#include <fmt/format.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <exception>
#include <memory>
#include <string>
#include <system_error>

#include "base/error.h"
#include "cli/config_file.h"
#include "cli/verbs.h"
#include "kernels/cpu/blas_info.h"

namespace {

// Two libraries read settings when they are loaded, before main; what is better for this machine is set, and
// the program starts once more. If it cannot, it goes on as it is. Whatever the user has set stays.
//   OMP_WAIT_POLICY: threads that wait in OpenMP spin by default, and a second program on the same cores then
//   makes this one ten times slower.
//   OPENBLAS_CORETYPE: see better_blas_core().
void set_up_libraries(char** argv) {
  bool again = !std::getenv("OMP_WAIT_POLICY") && ::setenv("OMP_WAIT_POLICY", "passive", 1) == 0;
  if (const std::string core = sinklora::better_blas_core(); !core.empty())
    again |= ::setenv("OPENBLAS_CORETYPE", core.c_str(), 1) == 0;
  if (again) ::execv("/proc/self/exe", argv);
}

// Not fmt::print, which throws where standard error cannot be written either.
int complain(const std::string& text, sinklora::ExitCode code) {
  std::fputs(("sinklora: " + text + "\n").c_str(), stderr);
  return static_cast<int>(code);
}

constexpr const char* kExitCodes =
    "Exit codes: 0 done, 2 wrong command line, 3 broken input, 4 does not fit into memory,\n"
    "5 non-finite loss, 6 a peer failed, 70 a defect of this program, 75 saved on a signal,\n"
    "128 + n where signal n ended a rank of --gpus (137: KILL).";

// Where a verb does not name those that it has.
void add_exit_codes(CLI::App& app) {
  if (app.get_footer().find("Exit codes") == std::string::npos)
    app.footer(app.get_footer() + (app.get_footer().empty() ? "" : "\n") + kExitCodes);
  for (CLI::App* verb : app.get_subcommands([](CLI::App* one) { return !one->get_name().empty(); }))
    add_exit_codes(*verb);
}

int run(int argc, char** argv) {
  using namespace sinklora;
  CLI::App app{"sinklora: long-context fine-tuning of LLaMA with SF-Attn and LoRA+"};
  app.set_version_flag("--version", SINKLORA_VERSION);
  app.require_subcommand(1);
  app.fallthrough();  // --config may stand after the verb
  add_tokenize(app);
  add_inspect(app);
  app.set_config("--config", "", "read options from a TOML file; the command line wins over it");
  app.allow_config_extras(CLI::config_extras_mode::error);
  app.config_formatter(std::make_shared<ConfigFile>(app));
  add_plan(app);
  add_train(app);
  add_eval(app);
  add_generate(app);
  add_chat(app);
  add_corpus(app);
  add_bench(app);
  add_env(app);
  add_merge(app);
  add_export(app);
  add_verify(app);
  add_exit_codes(app);
  try {
    app.parse(argc, argv);
    return 0;
  } catch (const CLI::RuntimeError& error) {  // a verb that ends with a code of its own
    return error.get_exit_code();
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : static_cast<int>(ExitCode::usage);
  } catch (const Error& error) {
    return complain(error.what(), error.code);
  } catch (const std::system_error& error) {  // what the system refuses is no defect of this program
    return complain(error.what(), ExitCode::input);
  } catch (const std::exception& error) {
    return complain(fmt::format("internal error: {}", error.what()), ExitCode::internal);
  }
}

}  // namespace

int main(int argc, char** argv) {
  set_up_libraries(argv);
  const int code = run(argc, argv);
  if (std::fflush(stdout) == 0 && !std::ferror(stdout)) return code;
  const int lost = complain("standard output cannot be written, and what it was to hold is lost",
                            sinklora::ExitCode::input);
  return code != 0 ? code : lost;
}
