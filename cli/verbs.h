// The verbs of the program: each file cli/VERB.cpp adds its subcommand to the parser, and its callback calls
// one function of the floors below.
#pragma once

#include <CLI/CLI.hpp>

namespace sinklora {

void add_corpus(CLI::App& app);
void add_tokenize(CLI::App& app);
void add_inspect(CLI::App& app);
void add_plan(CLI::App& app);
void add_train(CLI::App& app);
void add_eval(CLI::App& app);
void add_eval_retrieval(CLI::App& eval);  // a part of it
void add_generate(CLI::App& app);
void add_chat(CLI::App& app);
void add_merge(CLI::App& app);
void add_export(CLI::App& app);
void add_verify(CLI::App& app);
void add_bench(CLI::App& app);
void add_env(CLI::App& app);

}  // namespace sinklora
