// Times of attention forward and backward with every kernel of the device; printed, not checked. TFLOP/s over
// visible pairs (4 D a pair and head forward, 10 D backward), median of 11 runs after a warm-up, LLaMA-2-7B's
// heads, random normal inputs. Runs on request:
//   sinklora_gpu_tests -ns -tc="timing of attention"
#include <doctest/doctest.h>

#include <algorithm>
#include <random>

#include "attention_data.h"

namespace sinklora::test {
namespace {

double visible_pairs(const AttentionPattern& pattern, int64_t heads, int64_t length) {
  const auto of_head = [&](int64_t head) {
    double pairs = 0;
    for (int64_t i = 0; i < length; ++i) {
      const RangePair keys = key_ranges(pattern, head, i, length);
      pairs += static_cast<double>(std::max<int64_t>(keys.first.end - keys.first.begin, 0) + keys.second.end -
                                   keys.second.begin);
    }
    return pairs;
  };
  const auto unshifted = static_cast<double>(std::min(pattern.first_shifted_head, heads));
  return unshifted * of_head(0) + (static_cast<double>(heads) - unshifted) * of_head(heads - 1);
}

// Random normal numbers, the same again after every 1048573: no two rows of a head are alike.
void fill(GuardedMemory& memory) {
  std::mt19937_64 engine(5);
  std::normal_distribution<float> normal;
  std::vector<BFloat16> block(1048573);
  for (BFloat16& value : block) value = BFloat16(normal(engine));
  const auto bytes = static_cast<int64_t>(block.size()) * 2;
  for (int64_t at = 0; at < memory.bytes(); at += bytes)
    check(cudaMemcpy(memory.data() + at, block.data(),
                     static_cast<size_t>(std::min(bytes, memory.bytes() - at)), cudaMemcpyHostToDevice));
}

constexpr int kRepeats = 11;

template <class Run>
double median_ms(Run run) {
  cudaEvent_t begin, end;
  check(cudaEventCreate(&begin));
  check(cudaEventCreate(&end));
  std::vector<float> times;
  for (int i = 0; i < kRepeats + 2; ++i) {
    check(cudaEventRecord(begin));
    run();
    check(cudaEventRecord(end));
    check(cudaEventSynchronize(end));
    float ms = 0;
    check(cudaEventElapsedTime(&ms, begin, end));
    if (i >= 2) times.push_back(ms);
  }
  check(cudaEventDestroy(begin));
  check(cudaEventDestroy(end));
  std::nth_element(times.begin(), times.begin() + kRepeats / 2, times.end());
  return times[kRepeats / 2];
}

struct Case {
  std::string pattern;
  int64_t heads, kv_heads, context, dim, sinks = 0;
  int64_t short_documents = 0;  // of 256 tokens each, behind one long one
};
void measure(const Case& c) {
  std::vector<int64_t> lengths(static_cast<size_t>(c.short_documents), 256);
  lengths.insert(lengths.begin(), c.context - 256 * c.short_documents);
  AttentionBuffers b(DType::bf16, lengths, c.heads, c.kv_heads, c.dim,
                     pattern_of(c.pattern, c.heads, c.context / 4, c.sinks));
  fill(b.qkv);
  fill(b.d_out);
  double pairs = 0;
  for (const int64_t length : lengths) pairs += visible_pairs(b.pattern, c.heads, length);
  const double flops = pairs * static_cast<double>(c.dim) * 1e-9;
  for (const AttentionKernel kernel : kernels_for(DType::bf16, c.dim)) {
    b.use(kernel);
    const double forward = median_ms([&] { b.forward(); }), backward = median_ms([&] { b.backward(); });
    fmt::print(
        "{:<6} {:<5} {:>2}/{:<2} {:>4} {:>6} {:>9} {:>4}  {:8.3f} ms {:6.1f} TFLOP/s  {:8.3f} ms {:6.1f} "
        "TFLOP/s  "
        "{:7.1f} MiB\n",
        name_of(kernel), c.pattern, c.heads, c.kv_heads, c.dim, c.context, lengths.size(), c.sinks, forward,
        4 * flops / forward, backward, 10 * flops / backward,
        static_cast<double>(b.workspace->bytes()) / (1 << 20));
  }
}

}  // namespace

TEST_CASE("timing of attention" * doctest::skip()) {
  fmt::print(
      "kernel pattern heads dim context documents sinks   forward                     backward           "
      "scratch\n");
  for (const int64_t context : {8192, 16384, 32768})
    for (const Case& c : {Case{"full", 32, 32, context, 128},
                          {"s2", 32, 32, context, 128},
                          {"sf", 32, 32, context, 128, 4},
                          {"sf", 32, 32, context, 128, 64}})
      measure(c);
  measure({"full", 32, 8, 8192, 128});
  measure({"sf", 32, 8, 8192, 128, 4});
  measure({"full", 32, 32, 8192, 64});
  measure({"sf", 32, 32, 8192, 64, 4});
  for (const int64_t documents : {32, 96}) {
    measure({"full", 32, 32, 32768, 128, 0, documents});
    measure({"sf", 32, 32, 32768, 128, 4, documents});
  }
}

}  // namespace sinklora::test
