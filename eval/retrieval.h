// Retrieval: something told in a long text, and asked for at its end. What all such tests share: trials by
// length and depth, the judgement of an answer, the heat map.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "comm/communicator.h"
#include "infer/session.h"

namespace sinklora {

struct RetrievalPrompt {
  std::vector<int32_t> ids;     // ends where the answer begins
  std::vector<int32_t> answer;  // the tokens of a right one
};

// The prompt of trial `trial`, of roughly `tokens` tokens. `depth`: the part of the text in front of what is
// asked for; without it the task places it by its own rule. Equal arguments give equal prompts.
using RetrievalTask =
    std::function<RetrievalPrompt(int64_t tokens, int64_t trial, const std::optional<double>& depth)>;

struct RetrievalOptions {
  int64_t max_tokens = 8000, interval = 1000;  // lengths are interval, 2 interval ... max_tokens
  int64_t depths = 0;                          // evenly from 0 to 1; 0: as the task places it in each trial
  int64_t trials = 10;                         // of each length and depth
};

struct RetrievalCell {
  int64_t wanted_tokens = 0;
  std::optional<double> depth;
  int64_t trials = 0, correct = 0;
  double tokens = 0;  // of the prompts, on average
  double accuracy() const { return static_cast<double>(correct) / static_cast<double>(trials); }
};

// Tokens of the longest prompt and its answer.
int64_t retrieval_context(const RetrievalTask& task, const RetrievalOptions& options);
// A trial is right when the likeliest tokens are exactly those of the answer. Cells by length, then depth.
// Trials go round the ranks, and every rank gets all cells.
std::vector<RetrievalCell> measure_retrieval(Session& session, const RetrievalTask& task,
                                             const RetrievalOptions& options, bool show_progress,
                                             Communicator* ranks = nullptr);
// Lengths from left to right, depths from top to bottom, as an SVG file; `no_depth` names the row of cells
// without one.
void write_heat_map(const std::filesystem::path& path, const std::string& title, const std::string& no_depth,
                    std::span<const RetrievalCell> cells);

}  // namespace sinklora
