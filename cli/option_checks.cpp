#include "cli/option_checks.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <regex>

#include "comm/launch_environment.h"
#include "model/expected_directory.h"

namespace sinklora {
namespace {

// Empty when `text` is a whole number in range, else what is wrong with it.
std::string check_count(const std::string& text, int64_t low, int64_t high, int64_t* value) {
  static const std::regex form("(0|-?[1-9][0-9]{0,15})([kMG]?)");
  std::smatch match;
  if (!std::regex_match(text, match, form))
    return fmt::format("'{}' is not a whole number (like 4096, 8k or 2M)", text);
  int64_t unit = 1;
  if (match[2] == "k") unit = 1000;
  if (match[2] == "M") unit = 1000'000;
  if (match[2] == "G") unit = 1000'000'000;
  const int64_t number = std::stoll(match[1]);
  if (__builtin_mul_overflow(number, unit, value) || *value < low || *value > high)
    return fmt::format("{} is not in {} .. {}", text, low, high);
  return {};
}

std::string check_number(const std::string& text, double low, double high, double* value) {
  size_t used = 0;
  try {
    *value = std::stod(text, &used);
  } catch (const std::exception&) {
    return fmt::format("'{}' is not a number", text);
  }
  if (used != text.size() || !std::isfinite(*value) || text.find_first_of("xX \t\n") != std::string::npos)
    return fmt::format("'{}' is not a finite decimal number", text);
  if (*value < low || *value > high) return fmt::format("{} is not in {} .. {}", text, low, high);
  return {};
}

}  // namespace

CLI::Option* add_count(CLI::App& app, const std::string& name, int64_t& value, const std::string& help,
                       int64_t low, int64_t high) {
  const auto parse = [&value, low, high, name](const std::string& text) {
    if (const std::string wrong = check_count(text, low, high, &value); !wrong.empty())
      throw CLI::ValidationError(name, wrong);
  };
  return app.add_option_function<std::string>(name, parse, help)
      ->type_name("N")
      ->default_str(std::to_string(value));
}

CLI::Option* add_counts(CLI::App& app, const std::string& name, std::vector<int64_t>& values,
                        const std::string& help, int64_t low, int64_t high) {
  const auto parse = [&values, low, high, name](const std::vector<std::string>& texts) {
    values.clear();
    for (const std::string& text : texts) {
      values.push_back(0);
      if (const std::string wrong = check_count(text, low, high, &values.back()); !wrong.empty())
        throw CLI::ValidationError(name, wrong);
    }
  };
  return app.add_option_function<std::vector<std::string>>(name, parse, help)
      ->delimiter(',')
      ->type_name("LIST")
      ->default_str(fmt::format("{}", fmt::join(values, ",")));
}

CLI::Option* add_number(CLI::App& app, const std::string& name, double& value, const std::string& help,
                        double low, double high) {
  const auto parse = [&value, low, high, name](const std::string& text) {
    if (const std::string wrong = check_number(text, low, high, &value); !wrong.empty())
      throw CLI::ValidationError(name, wrong);
  };
  return app.add_option_function<std::string>(name, parse, help)
      ->type_name("X")
      ->default_str(fmt::format("{}", value));
}

CLI::Option* add_choice(CLI::App& app, const std::string& name, std::string& value, const std::string& help,
                        const std::vector<std::string>& words) {
  return app.add_option(name, value, help)
      ->check(CLI::IsMember(words))
      ->capture_default_str()
      ->type_name("WORD");
}

CLI::Option* add_choices(CLI::App& app, const std::string& name, std::vector<std::string>& values,
                         const std::string& help, const std::vector<std::string>& words) {
  return app.add_option(name, values, help)
      ->delimiter(',')
      ->check(CLI::IsMember(words))
      ->type_name("LIST")
      ->default_str(fmt::format("{}", fmt::join(values, ",")));
}

CLI::Option* add_turn_off(CLI::App& app, const std::string& name, bool& value, const std::string& help) {
  return app
      .add_option_function<bool>(
          name, [&value](bool off) { value = !off; }, help)
      ->multi_option_policy(CLI::MultiOptionPolicy::TakeLast)
      ->expected(0)
      ->type_name("");
}

void add_device(CLI::App& app, std::string& device, std::string& precision) {
  precision = "auto";
  add_choice(app, "--device", device, "what computes", {"cpu", "cuda"});
  add_choice(
      app, "--precision", precision,
      "auto: bf16 on a GPU, fp32 on the CPU. On a GPU bf16 is what tensor cores compute in, fp32 is for "
      "comparison; on the CPU bf16 keeps frozen matrices in bf16 and computes in fp32",
      {"auto", "bf16", "fp32"});
}

CLI::Option* accept_run(CLI::Option* directory, const std::vector<std::string>& words) {
  const auto newest = [words](const std::string& text) {
    return std::find(words.begin(), words.end(), text) != words.end() ? text
                                                                      : latest_checkpoint(text).string();
  };
  return directory->transform(newest)->type_name("DIR");
}

CLI::Option* add_gpus(CLI::App& app, std::string& value, const std::string& help) {
  return app.add_option("--gpus", value, help)
      ->check([](const std::string& gpus) -> std::string {
        const bool number = !gpus.empty() && gpus.size() < 5 && gpus[0] != '0' &&
                            gpus.find_first_not_of("0123456789") == std::string::npos;
        return number || gpus == "all" ? ""
                                       : fmt::format("'{}': wanted all, or a number from 1 to 9999", gpus);
      })
      ->capture_default_str()
      ->type_name("all|N");
}

void note_idle(const CLI::App& verb, const std::vector<std::string>& names, const std::string& because) {
  const LaunchEnvironment launch = detect_launch(process_variables());
  if (launch.rank != 0 || launch.launcher == "sinklora") return;  // who started the ranks has said it
  const CLI::App* top = &verb;
  while (top->get_parent()) top = top->get_parent();
  const bool from_file = top->get_config_ptr() && top->get_config_ptr()->count() > 0;
  std::vector<std::string> idle;
  for (const std::string& name : names) {
    const CLI::Option* option = verb.get_option(name);
    if (option->count() > 0 &&
        !(from_file && fmt::format("{}", fmt::join(option->results(), ",")) == option->get_default_str()))
      idle.push_back(name);
  }
  if (!idle.empty())
    fmt::print(stderr, "note: {} {} nothing with {}\n", fmt::join(idle, ", "),
               idle.size() == 1 ? "does" : "do", because);
}

void note_idle_pattern(const CLI::App& verb, const std::string& attention) {
  if (attention == "sf") return;
  std::vector<std::string> idle{"--sinks", "--shifted-heads"};
  if (attention == "full") idle.push_back("--group-ratio");
  note_idle(verb, idle, "--attention " + attention);
}

}  // namespace sinklora
