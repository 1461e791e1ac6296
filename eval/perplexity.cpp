#include "eval/perplexity.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>
#include <optional>

#include "base/progress.h"

namespace sinklora {
namespace {

constexpr double kLongLoraE = 2.71828;  // what eval.py raises to the mean loss

double sum_of(const std::vector<double>& numbers) {
  return std::accumulate(numbers.begin(), numbers.end(), 0.0);
}

std::optional<Progress> progress_of(bool show, int64_t windows) {
  if (!show) return std::nullopt;
  return std::optional<Progress>(std::in_place, "perplexity", static_cast<double>(windows), "windows");
}

}  // namespace

Perplexity perplexity_blocks(Llama& model, const Dataset& dataset, const AttentionPattern& pattern,
                             int64_t batch, bool show_progress, Communicator* ranks) {
  Perplexity result;
  double sum = 0;
  const int64_t rank = ranks ? ranks->rank() : 0, world_size = ranks ? ranks->world_size() : 1;
  std::optional<Progress> progress = progress_of(show_progress, dataset.size());
  for (int64_t round = 0; round < dataset.size(); round += world_size * batch) {
    const int64_t first = round + rank * batch;
    if (first >= dataset.size()) {
      model.accompany_nll();
      continue;
    }
    std::vector<Sample> samples;
    std::vector<int64_t> ids;
    for (int64_t i = first; i < std::min(first + batch, dataset.size()); ++i) {
      samples.push_back(dataset.read(i));
      ids.push_back(i);
    }
    const Batch windows = make_batch(samples, ids);
    sum += sum_of(model.nll(windows, pattern));
    result.windows += static_cast<int64_t>(samples.size());
    result.tokens += windows.scored_tokens;
    if (progress) progress->update(static_cast<double>(result.windows));
  }
  if (ranks) {
    std::array<double, 3> sums{sum, static_cast<double>(result.windows), static_cast<double>(result.tokens)};
    ranks->sum_on_host(sums);
    sum = sums[0];
    result.windows = std::llround(sums[1]);
    result.tokens = std::llround(sums[2]);
  }
  if (result.tokens == 0) fail_input("the evaluation data has no scored position");
  result.nll = sum / static_cast<double>(result.tokens);
  result.ppl = std::exp(result.nll);
  return result;
}

Perplexity perplexity_sliding(Llama& model, const std::vector<int32_t>& stream,
                              const AttentionPattern& pattern, int64_t context, int64_t stride,
                              bool show_progress) {
  const auto length = static_cast<int64_t>(stream.size());
  std::vector<int64_t> starts;
  for (int64_t start = 0; start < length - context; start += stride) starts.push_back(start);
  if (!starts.empty()) starts.pop_back();
  if (starts.empty())
    fail_input("the sliding protocol needs more than {} tokens (context + stride); the data has {}",
               context + stride, length);
  Perplexity result;
  double sum = 0;
  std::optional<Progress> progress = progress_of(show_progress, static_cast<int64_t>(starts.size()));
  for (const int64_t start : starts) {
    Sample window;
    window.ids.assign(stream.begin() + start, stream.begin() + start + context);
    window.targets.assign(window.ids.begin() + 1, window.ids.end());
    window.targets.push_back(kNotScored);
    window.document_starts = {0};
    sum += sum_of(model.nll(make_batch({window}, {start}), pattern)) / static_cast<double>(context - 1);
    ++result.windows;
    if (progress) progress->update(static_cast<double>(result.windows));
  }
  result.tokens = result.windows * (context - 1);
  result.nll = sum / static_cast<double>(result.windows);
  result.ppl = std::pow(kLongLoraE, result.nll);
  return result;
}

}  // namespace sinklora
