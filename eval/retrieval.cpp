#include "eval/retrieval.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/files.h"
#include "base/progress.h"
#include "infer/sampling.h"

namespace sinklora {
namespace {

std::vector<std::optional<double>> depths_of(const RetrievalOptions& options) {
  if (options.depths == 0) return {std::nullopt};
  std::vector<std::optional<double>> depths;
  for (int64_t i = 0; i < options.depths; ++i)
    depths.push_back(options.depths == 1 ? 0.5
                                         : static_cast<double>(i) / static_cast<double>(options.depths - 1));
  return depths;
}

bool answers(Session& session, const RetrievalPrompt& prompt) {
  const std::span<const int32_t> answer = prompt.answer;
  session.reset();
  std::vector<float> logits = session.extend(prompt.ids);
  Sampler greedy({});
  for (size_t i = 0;; ++i) {
    if (greedy.next(logits) != answer[i]) return false;
    if (i + 1 == answer.size()) return true;
    logits = session.extend(answer.subspan(i, 1));
  }
}

}  // namespace

int64_t retrieval_context(const RetrievalTask& task, const RetrievalOptions& options) {
  int64_t longest = 0;
  const int64_t tokens = options.max_tokens / options.interval * options.interval;
  for (const auto& depth : depths_of(options))
    for (int64_t trial = 0; trial < options.trials; ++trial) {
      const RetrievalPrompt prompt = task(tokens, trial, depth);
      longest = std::max(longest, std::ssize(prompt.ids) + std::ssize(prompt.answer));
    }
  return longest;
}

std::vector<RetrievalCell> measure_retrieval(Session& session, const RetrievalTask& task,
                                             const RetrievalOptions& options, bool show_progress,
                                             Communicator* ranks) {
  const std::vector<std::optional<double>> depths = depths_of(options);
  const int64_t lengths = options.max_tokens / options.interval;
  std::optional<Progress> progress;
  if (show_progress)
    progress.emplace("retrieval",
                     static_cast<double>(lengths * options.trials) * static_cast<double>(depths.size()),
                     "trials");
  std::vector<RetrievalCell> cells;
  const int64_t rank = ranks ? ranks->rank() : 0, world_size = ranks ? ranks->world_size() : 1;
  std::vector<double> correct;  // of each cell, by this rank
  int64_t done = 0;
  for (int64_t length = 1; length <= lengths; ++length)
    for (const auto& depth : depths) {
      RetrievalCell cell{
          .wanted_tokens = length * options.interval, .depth = depth, .trials = options.trials};
      double right = 0;
      for (int64_t trial = 0; trial < options.trials; ++trial) {
        const RetrievalPrompt prompt = task(cell.wanted_tokens, trial, depth);
        if (done % world_size == rank) right += answers(session, prompt);
        cell.tokens += static_cast<double>(prompt.ids.size()) / static_cast<double>(options.trials);
        ++done;
        if (progress) progress->update(static_cast<double>(done));
      }
      cells.push_back(cell);
      correct.push_back(right);
    }
  if (ranks) ranks->sum_on_host(correct);
  for (size_t i = 0; i < cells.size(); ++i) cells[i].correct = static_cast<int64_t>(correct[i]);
  return cells;
}

void write_heat_map(const std::filesystem::path& path, const std::string& title, const std::string& no_depth,
                    std::span<const RetrievalCell> cells) {
  constexpr int kLeft = 80, kTop = 44, kWidth = 46, kHeight = 30, kBottom = 50;
  const auto rows = std::max<int64_t>(
      1, std::count_if(cells.begin(), cells.end(),
                       [&](const RetrievalCell& c) { return c.wanted_tokens == cells[0].wanted_tokens; }));
  const int64_t columns = static_cast<int64_t>(cells.size()) / rows;
  const int64_t right = kLeft + columns * kWidth, bottom = kTop + rows * kHeight;
  std::string svg = fmt::format(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{0}\" height=\"{1}\" font-family=\"sans-serif\" "
      "font-size=\"12\" text-anchor=\"middle\">\n<rect width=\"{0}\" height=\"{1}\" fill=\"white\"/>\n"
      "<text x=\"{2}\" y=\"24\" font-size=\"15\" text-anchor=\"start\">{3}</text>\n",
      std::max<int64_t>(right + 20, 420), bottom + kBottom, kLeft, title);
  for (size_t i = 0; i < cells.size(); ++i) {
    const RetrievalCell& cell = cells[i];
    const int64_t column = static_cast<int64_t>(i) / rows, row = static_cast<int64_t>(i) % rows;
    const int64_t x = kLeft + column * kWidth, y = kTop + row * kHeight;
    svg += fmt::format(
        "<rect x=\"{}\" y=\"{}\" width=\"{}\" height=\"{}\" fill=\"hsl({:.0f},60%,60%)\" stroke=\"white\"/>\n"
        "<text x=\"{}\" y=\"{}\">{:.0f}</text>\n",
        x, y, kWidth, kHeight, 120 * cell.accuracy(), x + kWidth / 2, y + kHeight / 2 + 4,
        100 * cell.accuracy());
    if (row == 0)
      svg +=
          fmt::format("<text x=\"{}\" y=\"{}\">{}</text>\n", x + kWidth / 2, bottom + 16, cell.wanted_tokens);
    if (column == 0)
      svg += fmt::format("<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{}</text>\n", kLeft - 6,
                         y + kHeight / 2 + 4,
                         cell.depth ? fmt::format("{:.0f} %", 100 * *cell.depth) : no_depth);
  }
  svg += fmt::format(
      "<text x=\"{}\" y=\"{}\">tokens</text>\n"
      "<text transform=\"translate(20,{}) rotate(-90)\">depth of what is asked for</text>\n</svg>\n",
      (kLeft + right) / 2, bottom + 36, (kTop + bottom) / 2);
  write_text_atomically(path, svg);
}

}  // namespace sinklora
