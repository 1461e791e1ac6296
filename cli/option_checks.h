// Validators for numbers on the command line: CLI11 alone takes -1 for a size, nan for a rate and 010 for
// eight.
#pragma once

#include <CLI/CLI.hpp>

#include <cstdint>
#include <string>
#include <vector>

namespace sinklora {

// A whole number in [low, high], plain decimal, with an optional suffix k, M or G (powers of 1000).
CLI::Option* add_count(CLI::App& app, const std::string& name, int64_t& value, const std::string& help,
                       int64_t low = 0, int64_t high = int64_t{1} << 48);
// The same, several with commas between them.
CLI::Option* add_counts(CLI::App& app, const std::string& name, std::vector<int64_t>& values,
                        const std::string& help, int64_t low = 0, int64_t high = int64_t{1} << 48);
// A finite number in [low, high].
CLI::Option* add_number(CLI::App& app, const std::string& name, double& value, const std::string& help,
                        double low, double high);
// One of a few words.
CLI::Option* add_choice(CLI::App& app, const std::string& name, std::string& value, const std::string& help,
                        const std::vector<std::string>& words);
// Several of a few words, with commas between them.
CLI::Option* add_choices(CLI::App& app, const std::string& name, std::vector<std::string>& values,
                         const std::string& help, const std::vector<std::string>& words);
// A flag that turns `value` off. (CLI11's own "!--no-x" is written to a file as the value, and read from it as
// the value's opposite.)
CLI::Option* add_turn_off(CLI::App& app, const std::string& name, bool& value, const std::string& help);
// --device and --precision, both with their defaults; the verb calls precision_on() for "auto".
void add_device(CLI::App& app, std::string& device, std::string& precision);
// For the directory of a model, adapter or checkpoint: a run directory of `train` stands for its newest one.
// `words` are no directories.
CLI::Option* accept_run(CLI::Option* directory, const std::vector<std::string>& words = {});
// --gpus: "all" or a number from 1 to 9999, left as text.
CLI::Option* add_gpus(CLI::App& app, std::string& value, const std::string& help);
// Says once, on standard error, which of `names` were given though they do nothing with `because`
// ("--attention s2"). Where there is a --config, what has its default does not count: run.toml names all.
void note_idle(const CLI::App& verb, const std::vector<std::string>& names, const std::string& because);
// The same of --sinks, --shifted-heads and --group-ratio, for a pattern.
void note_idle_pattern(const CLI::App& verb, const std::string& attention);

}  // namespace sinklora
