#include "cli/config_file.h"

#include <fmt/format.h>

#include <algorithm>
#include <iterator>
#include <numeric>
#include <sstream>
#include <utility>

#include "base/error.h"

namespace sinklora {
namespace {

struct Setting {
  CLI::Option* option;
  CLI::ConfigItem item;
  std::string verb, place;
};

// Without comments. CLI11 itself ends values at the first #, in quotes too.
std::string without_comments(const std::string& text) {
  std::string kept;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    const size_t end_of_line = std::min(text.find('\n', i), text.size());
    if (c == '#') {
      i = end_of_line - 1;
    } else if (const size_t close = text.find(c, i + 1); (c == '"' || c == '\'') && close < end_of_line) {
      kept += text.substr(i, close - i + 1);
      i = close;
    } else {
      kept += c;
    }
  }
  return kept;
}

// The line that sets `key` in `section`, counted from one; 0: none was recognised.
int line_of(const std::string& text, const std::string& section, const std::string& key) {
  std::istringstream lines(text);
  std::string line, now;
  for (int number = 1; std::getline(lines, line); ++number) {
    CLI::detail::trim(line);
    if (line.starts_with('[') && line.ends_with(']')) {
      now = line.substr(1, line.size() - 2);
      if (key.empty() && now == section) return number;
      continue;
    }
    std::string name = line.substr(0, line.find('='));
    CLI::detail::trim(name);
    CLI::detail::remove_quotes(name);
    if (!key.empty() &&
        (now.empty() ? name : now + "." + name) == (section.empty() ? key : section + "." + key))
      return number;
  }
  return 0;
}

CLI::App* verb_at(CLI::App& app, const std::vector<std::string>& names) {
  CLI::App* at = &app;
  for (const std::string& name : names) {
    try {
      at = at->get_subcommand(name);
    } catch (const CLI::OptionNotFound&) {
      return nullptr;
    }
  }
  return at;
}

CLI::Option* option_of(CLI::App& verb, const std::string& name) {
  CLI::Option* option = verb.get_option_no_throw("--" + name);
  if (!option && name.size() == 1) option = verb.get_option_no_throw("-" + name);
  if (!option) option = verb.get_option_no_throw(name);
  return option && option->get_configurable() ? option : nullptr;
}

size_t edits_between(const std::string& a, const std::string& b) {
  std::vector<size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), size_t{0});
  for (size_t i = 0; i < a.size(); ++i) {
    size_t diagonal = std::exchange(row[0], i + 1);
    for (size_t j = 0; j < b.size(); ++j) {
      const size_t changed = diagonal + (a[i] != b[j]);
      diagonal = row[j + 1];
      row[j + 1] = std::min({changed, row[j] + 1, row[j + 1] + 1});
    }
  }
  return row.back();
}

// The option of `verb` that is most like `name`; empty: none is like it.
std::string closest_option(const CLI::App& verb, const std::string& name) {
  std::string closest;
  size_t least = 3;
  const auto look = [&](const CLI::App& group, const auto& again) -> void {
    for (const CLI::Option* option : group.get_options())
      for (const std::string& known : option->get_lnames())
        if (const size_t edits = edits_between(name, known); option->get_configurable() && edits < least)
          least = edits, closest = known;
    for (const CLI::App* part :
         group.get_subcommands([](const CLI::App* one) { return one->get_name().empty(); }))
      again(*part, again);
  };
  look(verb, look);
  return closest;
}

void apply(const Setting& setting, const CLI::Config& config) {
  CLI::Option& option = *setting.option;
  if (!option.empty()) fail_usage("{}: {} is set twice", setting.place, setting.item.name);
  try {
    if (option.get_expected_min() == 0)
      option.add_result(option.get_flag_value(setting.item.name, config.to_flag(setting.item)));
    else
      option.add_result(setting.item.inputs);
    option.run_callback();
  } catch (const CLI::ParseError& error) {
    fail_usage("{}: {}; `sinklora {} --help` lists the options", setting.place, error.what(), setting.verb);
  }
}

bool said_otherwise(const CLI::Option& option) {
  const auto excluded = option.get_excludes();
  return option.count() > 0 ||
         std::any_of(excluded.begin(), excluded.end(), [](const auto* other) { return other->count() > 0; });
}

}  // namespace

std::vector<CLI::ConfigItem> ConfigFile::from_config(std::istream& input) const {
  const std::string text{std::istreambuf_iterator<char>(input), {}};
  const auto file = app_.get_config_ptr()->as<std::string>();
  const auto place = [&](const std::string& section, const std::string& key) {
    const int line = line_of(text, section, key);
    return line > 0 ? fmt::format("{}:{}", file, line) : file;
  };
  std::vector<std::string> current;  // "eval", "ppl"
  for (const CLI::App* at = &app_; !at->get_subcommands().empty(); current.push_back(at->get_name()))
    at = at->get_subcommands().front();
  if (current.empty()) return {};  // CLI11 asks for a verb

  std::istringstream lines(without_comments(text));
  CLI::ConfigTOML values;
  values.comment('\0');
  std::vector<Setting> settings;
  for (CLI::ConfigItem& item : values.from_config(lines)) {
    const std::string section = fmt::format("{}", fmt::join(item.parents, "."));
    if (item.parents.empty()) item.parents = current;
    const std::string verb = fmt::format("{}", fmt::join(item.parents, " "));
    CLI::App* owner = verb_at(app_, item.parents);
    if (!owner)
      fail_usage("{}: [{}]: no such verb; options of `{}` need no section, `sinklora --help` lists the verbs",
                 place(section, ""), section, fmt::join(current, " "));
    if (item.name == "++" || item.name == "--") continue;  // a section begins, or ends
    CLI::Option* option = option_of(*owner, item.name);
    if (!option) {
      const std::string close = closest_option(*owner, item.name);
      fail_usage("{}: {}: no such option;{} `sinklora {} --help` lists the options",
                 place(section, item.name), item.fullname(),
                 close.empty() ? "" : fmt::format(" did you mean {}?", close), verb);
    }
    if (!said_otherwise(*option)) settings.push_back({option, item, verb, place(section, item.name)});
  }
  // Only now: until here what options hold is what the command line said.
  for (const Setting& setting : settings) apply(setting, *this);
  return {};
}

}  // namespace sinklora
