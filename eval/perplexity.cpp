#include "eval/perplexity.h"

#include <algorithm>
#include <cmath>
#include <deque>
#include <functional>
#include <optional>

#include "base/progress.h"

namespace sinklora {
namespace {

constexpr double kLongLoraE = 2.71828;  // what eval.py raises to the mean loss

// The nll of every target of a batch, 0 where it is not scored.
using Score = std::function<std::vector<double>(const Batch&)>;

struct Windows {
  int64_t count = 0;
  int64_t context = 0;  // no sequence of a window is longer
  std::function<Sample(int64_t)> read;
};

// Of every window and bucket of positions: the sum of nll, and how many targets. A window is filled in by
// the rank that scored it and zero elsewhere, so that summing over ranks is exact.
class WindowSums {
 public:
  WindowSums(const Windows& windows, int64_t buckets)
      : windows_(windows.count),
        context_(windows.context),
        buckets_(std::clamp<int64_t>(buckets, 1, context_)) {
    values_.resize(static_cast<size_t>(2 * windows_ * buckets_));
  }

  // Rows [first, last) of a batch belong to window `window`.
  void add(int64_t window, const Batch& batch, const std::vector<double>& nll, size_t first, size_t last) {
    for (size_t t = first; t < last; ++t) {
      if (batch.targets[t] == kNotScored) continue;
      const int64_t bucket = batch.positions[t] * buckets_ / context_;
      value(window, bucket, 0) += nll[t];
      value(window, bucket, 1) += 1;
    }
  }

  void stop() { stopped_ = true; }
  void sum_over(Communicator& ranks) { ranks.sum_on_host(values_); }

  double nll(int64_t window) const { return total(window, 0); }
  int64_t tokens(int64_t window) const { return std::llround(total(window, 1)); }

  // `data`: what the windows are of, for messages.
  Perplexity result(const std::string& data) const {
    Perplexity result;
    result.stopped = stopped_;
    if (stopped_) return result;
    result.windows = windows_;
    for (int64_t w = 0; w < windows_; ++w) {
      result.nll += nll(w);
      result.tokens += tokens(w);
    }
    if (result.tokens == 0)
      fail_input("{}: its masks leave nothing to score; eval ppl --protocol sliding scores every token",
                 data);
    result.nll /= static_cast<double>(result.tokens);
    result.ppl = std::exp(result.nll);
    for (int64_t b = 0; b < buckets_; ++b) result.by_position.push_back(bucket(b));
    return result;
  }

 private:
  double& value(int64_t window, int64_t bucket, int64_t which) {
    return values_[static_cast<size_t>((window * buckets_ + bucket) * 2 + which)];
  }
  double value(int64_t window, int64_t bucket, int64_t which) const {
    return values_[static_cast<size_t>((window * buckets_ + bucket) * 2 + which)];
  }
  double total(int64_t window, int64_t which) const {
    double sum = 0;
    for (int64_t b = 0; b < buckets_; ++b) sum += value(window, b, which);
    return sum;
  }
  PositionBucket bucket(int64_t b) const {
    // Positions p with p * buckets / context == b.
    PositionBucket found{(b * context_ + buckets_ - 1) / buckets_,
                         ((b + 1) * context_ + buckets_ - 1) / buckets_};
    double tokens = 0;
    for (int64_t w = 0; w < windows_; ++w) {
      found.nll += value(w, b, 0);
      tokens += value(w, b, 1);
    }
    found.tokens = std::llround(tokens);
    if (found.tokens > 0) found.nll /= tokens;
    return found;
  }

  int64_t windows_, context_, buckets_;
  bool stopped_ = false;
  std::vector<double> values_;
};

// Batches of windows go round the ranks; a rank that gets none in the last round makes the model's calls to
// the others all the same.
WindowSums score_windows(Llama& model, const Windows& windows, const PerplexityOptions& options,
                         const Score& score) {
  WindowSums sums(windows, options.buckets);
  const int64_t rank = options.ranks ? options.ranks->rank() : 0;
  const int64_t world_size = options.ranks ? options.ranks->world_size() : 1;
  std::optional<Progress> progress;
  if (options.show_progress) progress.emplace("perplexity", static_cast<double>(windows.count), "windows");
  for (int64_t round = 0; round < windows.count; round += world_size * options.batch) {
    if (options.stop) {
      double asked = options.stop() ? 1 : 0;
      if (options.ranks) options.ranks->sum_on_host({&asked, 1});
      if (asked > 0) {
        sums.stop();
        return sums;
      }
    }
    const int64_t first = round + rank * options.batch;
    const int64_t last = std::min(first + options.batch, windows.count);
    if (first >= last) {
      model.accompany_nll();
      continue;
    }
    std::vector<Sample> samples;
    std::vector<int64_t> ids;
    for (int64_t window = first; window < last; ++window) {
      samples.push_back(windows.read(window));
      ids.push_back(window);
    }
    const Batch batch = make_batch(samples, ids);
    const std::vector<double> nll = score(batch);
    size_t row = 0;
    for (size_t i = 0; i < samples.size(); ++i) {
      const size_t next = row + samples[i].ids.size();
      sums.add(ids[i], batch, nll, row, next);
      row = next;
    }
    if (progress)
      progress->update(static_cast<double>(std::min(round + world_size * options.batch, windows.count)));
  }
  if (options.ranks) sums.sum_over(*options.ranks);
  return sums;
}

Windows windows_of(const Dataset& dataset, int64_t context) {
  return {dataset.size(), context, [&dataset](int64_t i) { return dataset.read(i); }};
}

// Scores sequences through caches of their own, as many at once as there are caches.
class CachedScore {
 public:
  CachedScore(Llama& model, const KvCachePolicy& policy, int64_t chunk, int64_t batch)
      : model_(model), chunk_(std::min(chunk, model.max_tokens() / batch)) {
    for (int64_t i = 0; i < batch; ++i) caches_.emplace_back(model.ops(), model.config(), policy, chunk_);
  }

  std::vector<double> operator()(const Batch& batch) {
    std::vector<double> nll(batch.ids.size());
    const size_t sequences = batch.offsets.size() - 1;
    for (size_t first = 0; first < sequences; first += caches_.size())
      score(batch, first, std::min(first + caches_.size(), sequences), nll);
    return nll;
  }

 private:
  // Sequences [first, last), a chunk of each in every pass until all have ended.
  void score(const Batch& batch, size_t first, size_t last, std::vector<double>& nll) {
    for (KvCache& cache : caches_) cache.clear();
    for (int64_t begin = 0;; begin += chunk_) {
      std::vector<Continuation> pass;
      std::vector<int32_t> targets;
      std::vector<size_t> rows;  // where each one's first row lies in the batch
      for (size_t s = first; s < last; ++s) {
        const int64_t from = batch.offsets[s] + begin, to = std::min(from + chunk_, batch.offsets[s + 1]);
        if (from >= to) continue;
        pass.push_back(
            {std::span(batch.ids).subspan(static_cast<size_t>(from), static_cast<size_t>(to - from)),
             &caches_[s - first]});
        targets.insert(targets.end(), batch.targets.begin() + from, batch.targets.begin() + to);
        rows.push_back(static_cast<size_t>(from));
      }
      if (pass.empty()) return;
      const std::vector<double> scored = model_.extend_nll(pass, targets);
      auto next = scored.begin();
      for (size_t i = 0; i < pass.size(); ++i) {
        std::copy_n(next, pass[i].ids.size(), nll.begin() + static_cast<int64_t>(rows[i]));
        next += static_cast<int64_t>(pass[i].ids.size());
      }
    }
  }

  Llama& model_;
  int64_t chunk_;
  std::deque<KvCache> caches_;  // which cannot be moved
};

std::vector<int64_t> sliding_starts(int64_t length, int64_t context, int64_t stride, SlidingRule rule) {
  std::vector<int64_t> starts;
  for (int64_t start = 0; start < length - context; start += stride) starts.push_back(start);
  if (rule == SlidingRule::eval && !starts.empty()) starts.pop_back();
  if (starts.empty())
    fail_input("windows that slide need more than {} tokens (context{}); the data has {}",
               context + (rule == SlidingRule::eval ? stride : 0),
               rule == SlidingRule::eval ? " + stride" : "", length);
  return starts;
}

}  // namespace

Perplexity perplexity_blocks(Llama& model, const Dataset& dataset, const AttentionPattern& pattern,
                             int64_t context, const PerplexityOptions& options) {
  return score_windows(model, windows_of(dataset, context), options,
                       [&](const Batch& batch) { return model.nll(batch, pattern); })
      .result(options.data);
}

Perplexity perplexity_cached(Llama& model, const Dataset& dataset, const KvCachePolicy& policy, int64_t chunk,
                             int64_t context, const PerplexityOptions& options) {
  CachedScore score(model, policy, chunk, options.batch);
  return score_windows(model, windows_of(dataset, context), options, std::ref(score)).result(options.data);
}

Perplexity perplexity_sliding(Llama& model, const std::vector<int32_t>& stream,
                              const AttentionPattern& pattern, int64_t context, int64_t stride,
                              SlidingRule rule, const PerplexityOptions& options) {
  const std::vector<int64_t> starts =
      sliding_starts(static_cast<int64_t>(stream.size()), context, stride, rule);
  const auto read = [&](int64_t i) {
    const auto begin = stream.begin() + starts[static_cast<size_t>(i)];
    Sample window{{begin, begin + context}, {begin + 1, begin + context}, {0}};
    window.targets.push_back(kNotScored);
    return window;
  };
  const WindowSums sums = score_windows(model, {static_cast<int64_t>(starts.size()), context, read}, options,
                                        [&](const Batch& batch) { return model.nll(batch, pattern); });
  Perplexity result = sums.result(options.data);
  if (rule == SlidingRule::eval && !result.stopped) {
    result.nll = 0;
    for (int64_t w = 0; w < result.windows; ++w)
      result.nll += sums.nll(w) / static_cast<double>(sums.tokens(w));
    result.nll /= static_cast<double>(result.windows);
    result.ppl = std::pow(kLongLoraE, result.nll);
  }
  return result;
}

}  // namespace sinklora
