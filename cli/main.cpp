// sinklora VERB [options]: parse, call one function below, turn errors into one line and an exit code.
#include <fmt/format.h>

#include <exception>

#include "base/error.h"
#include "cli/verbs.h"

int main(int argc, char** argv) {
  using namespace sinklora;
  CLI::App app{"sinklora: long-context fine-tuning of LLaMA with SF-Attn and LoRA+"};
  app.set_version_flag("--version", SINKLORA_VERSION);
  app.require_subcommand(1);
  add_tokenize(app);
  add_inspect(app);
  app.footer("Exit codes: 0 done, 2 wrong command line, 3 broken input, 4 does not fit into memory,\n"
             "5 non-finite loss, 6 a peer failed, 70 a defect of this program, 75 saved on a signal.");
  try {
    app.parse(argc, argv);
    return 0;
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : static_cast<int>(ExitCode::usage);
  } catch (const Error& error) {
    fmt::print(stderr, "sinklora: {}\n", error.what());
    return static_cast<int>(error.code);
  } catch (const std::exception& error) {
    fmt::print(stderr, "sinklora: internal error: {}\n", error.what());
    return static_cast<int>(ExitCode::internal);
  }
}
