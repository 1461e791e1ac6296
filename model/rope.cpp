#include "model/rope.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "base/error.h"

namespace sinklora {
namespace {

constexpr double kTwoPi = 2.0 * std::numbers::pi;

double original_context(const LlamaConfig& config) {
  return static_cast<double>(config.rope.original_context != 0 ? config.rope.original_context
                                                               : config.max_positions);
}

// Wavelengths far below the original context stay, those far above it are stretched by the factor, and those
// between are blended linearly in context / wavelength.
void stretch_llama3(const LlamaConfig& config, std::vector<double>& inverse) {
  const RopeScaling& rope = config.rope;
  for (double& f : inverse) {
    const double turns = original_context(config) * f / kTwoPi;  // of this pair over the original context
    const double keep = (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor);
    const double blend = std::clamp(keep, 0.0, 1.0);
    f = (1.0 - blend) * f / rope.factor + blend * f;
  }
}

// Pairs that turn more than beta_fast times over the original context stay, those that turn less than
// beta_slow times are stretched, with a linear ramp over the pairs between.
void stretch_yarn(const LlamaConfig& config, std::vector<double>& inverse) {
  const RopeScaling& rope = config.rope;
  const auto dim = static_cast<double>(config.head_dim);
  const auto pair_of = [&](double turns) {
    return dim * std::log(original_context(config) / (turns * kTwoPi)) / (2.0 * std::log(config.rope_theta));
  };
  double low = pair_of(rope.beta_fast), high = pair_of(rope.beta_slow);
  if (rope.truncate) low = std::floor(low), high = std::ceil(high);
  low = std::max(low, 0.0);
  high = std::min(high, dim - 1.0);
  if (low == high) high += 0.001;  // as transformers: no division by zero
  for (size_t i = 0; i < inverse.size(); ++i) {
    const double stretch = std::clamp((static_cast<double>(i) - low) / (high - low), 0.0, 1.0);
    inverse[i] = inverse[i] / rope.factor * stretch + inverse[i] * (1.0 - stretch);
  }
}

}  // namespace

std::vector<double> inverse_frequencies(const LlamaConfig& config, int64_t length) {
  using Type = RopeScaling::Type;
  const auto dim = static_cast<double>(config.head_dim);
  double theta = config.rope_theta;
  if (config.rope.type == Type::dynamic) {
    const auto base_length = static_cast<double>(config.max_positions);
    const double reach = std::max(static_cast<double>(length), base_length);
    const double factor = config.rope.factor;
    theta *= std::pow(factor * reach / base_length - (factor - 1.0), dim / (dim - 2.0));
  }
  std::vector<double> inverse(static_cast<size_t>(config.head_dim / 2));
  for (size_t i = 0; i < inverse.size(); ++i)
    inverse[i] = std::pow(theta, -2.0 * static_cast<double>(i) / dim);
  if (config.rope.type == Type::linear)
    for (double& f : inverse) f /= config.rope.factor;
  if (config.rope.type == Type::llama3) stretch_llama3(config, inverse);
  if (config.rope.type == Type::yarn) stretch_yarn(config, inverse);
  return inverse;
}

double rope_attention_factor(const LlamaConfig& config) {
  const RopeScaling& rope = config.rope;
  if (rope.type != RopeScaling::Type::yarn) return 1.0;
  if (rope.attention_factor > 0.0) return rope.attention_factor;
  const auto magnitude = [&](double scale) {
    return 0.1 * scale * std::log(rope.factor) + 1.0;
  };  // factor >= 1
  if (rope.mscale != 0.0 && rope.mscale_all_dim != 0.0)
    return magnitude(rope.mscale) / magnitude(rope.mscale_all_dim);
  return magnitude(1.0);
}

RopeTable make_rope_table(const LlamaConfig& config, int64_t positions) {
  if (positions < 0) fail_internal("a RoPE table of {} positions was asked for", positions);
  const std::vector<double> inverse = inverse_frequencies(config, positions);
  const double magnitude = rope_attention_factor(config);
  RopeTable table{positions, config.head_dim / 2, {}, {}};
  table.cosines.reserve(static_cast<size_t>(positions) * inverse.size());
  table.sines.reserve(static_cast<size_t>(positions) * inverse.size());
  for (int64_t position = 0; position < positions; ++position)
    for (const double f : inverse) {
      const double angle = static_cast<double>(position) * f;
      table.cosines.push_back(magnitude * std::cos(angle));
      table.sines.push_back(magnitude * std::sin(angle));
    }
  return table;
}

}  // namespace sinklora
