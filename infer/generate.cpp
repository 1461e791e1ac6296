#include "infer/generate.h"

#include <algorithm>
#include <cmath>

#include "base/random.h"

namespace sinklora {
namespace {

int32_t choose(const std::vector<float>& logits, const GenerateOptions& options, const RandomStream& random,
               uint64_t index) {
  const auto best = std::max_element(logits.begin(), logits.end());
  if (options.temperature == 0) return static_cast<int32_t>(best - logits.begin());
  std::vector<double> weights(logits.size());
  double sum = 0;
  for (size_t i = 0; i < logits.size(); ++i)
    sum += weights[i] = std::exp(static_cast<double>(logits[i] - *best) / options.temperature);
  double left = random.uniform(index) * sum;
  for (size_t i = 0; i < weights.size(); ++i)
    if ((left -= weights[i]) < 0) return static_cast<int32_t>(i);
  return static_cast<int32_t>(best - logits.begin());  // only by rounding
}

}  // namespace

std::vector<int32_t> generate(Llama& model, std::vector<int32_t> text, int64_t context,
                              const GenerateOptions& options, const std::function<void(int32_t)>& on_token) {
  if (text.empty()) fail_usage("the prompt is empty");
  const RandomStream random(options.seed, "generate");
  const size_t prompt = text.size();
  for (int64_t i = 0; i < options.max_new_tokens && static_cast<int64_t>(text.size()) < context; ++i) {
    Sample sample{text, std::vector<int32_t>(text.size(), kNotScored), {0}};
    const Batch batch = make_batch({sample}, {0});
    const int32_t next = choose(model.logits(batch, AttentionPattern{}, batch.tokens() - 1, 1), options,
                                random, static_cast<uint64_t>(i));
    if (std::find(options.stop_ids.begin(), options.stop_ids.end(), next) != options.stop_ids.end()) break;
    text.push_back(next);
    on_token(next);
  }
  return {text.begin() + static_cast<int64_t>(prompt), text.end()};
}

}  // namespace sinklora
