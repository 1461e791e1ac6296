#include "kernels/operation_counts.h"

#include <algorithm>

namespace sinklora {
namespace {

int64_t pairs_of_head(const AttentionPattern& pattern, int64_t head, int64_t length) {
  int64_t pairs = 0;
  for (int64_t query = 0; query < length; ++query) {
    const RangePair keys = key_ranges(pattern, head, query, length);
    for (const Range& range : {keys.first, keys.second})
      pairs += std::max<int64_t>(0, range.end - range.begin);
  }
  return pairs;
}

// u = x A^T, and y += u B^T.
double adapter_operations(int64_t tokens, const Linear& linear) {
  int64_t elements = 0;
  for (const LinearAdapter& adapter : linear.adapters) elements += adapter.a.size() + adapter.b.size();
  return 2.0 * static_cast<double>(tokens) * static_cast<double>(elements);
}

}  // namespace

int64_t visible_pairs(const AttentionPattern& pattern, int64_t num_heads, int64_t length) {
  // Heads differ in their shift alone.
  const int64_t unshifted = std::clamp<int64_t>(pattern.first_shifted_head, 0, num_heads);
  int64_t pairs = 0;
  if (unshifted > 0) pairs += unshifted * pairs_of_head(pattern, 0, length);
  if (unshifted < num_heads) pairs += (num_heads - unshifted) * pairs_of_head(pattern, num_heads - 1, length);
  return pairs;
}

double linear_forward_operations(int64_t tokens, const Linear& linear) {
  return 2.0 * static_cast<double>(tokens) * static_cast<double>(linear.weight.size()) +
         adapter_operations(tokens, linear);
}

double linear_backward_operations(int64_t tokens, const Linear& linear, const LinearGradient& gradient,
                                  bool input_gradient) {
  const double product = 2.0 * static_cast<double>(tokens) * static_cast<double>(linear.weight.size());
  double operations = (input_gradient ? product : 0) + (gradient.weight ? product : 0);
  // d_u, dB and dA; the fourth thin product adds d_u A to d_x.
  operations += 2 * adapter_operations(tokens, linear);
  if (!input_gradient)
    for (const LinearAdapter& adapter : linear.adapters)
      operations -= 2.0 * static_cast<double>(tokens) * static_cast<double>(adapter.a.size());
  return operations;
}

}  // namespace sinklora
