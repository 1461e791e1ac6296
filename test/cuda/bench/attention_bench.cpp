// Times attention forward and backward: attention_bench [repeats]. TFLOP/s over visible pairs (4 D a pair and
// head forward, 10 D backward), median of `repeats` runs after a warm-up, LLaMA-2-7B's heads, random normal
// inputs.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <random>

#include "../attention_data.h"

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

template <class Run>
double median_ms(int repeats, Run run) {
  cudaEvent_t begin, end;
  check(cudaEventCreate(&begin));
  check(cudaEventCreate(&end));
  std::vector<float> times;
  for (int i = 0; i < repeats + 2; ++i) {
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
  std::nth_element(times.begin(), times.begin() + repeats / 2, times.end());
  return times[static_cast<size_t>(repeats / 2)];
}

void measure(const std::string& name, int64_t heads, int64_t kv_heads, int64_t context, int64_t dim,
             int64_t sinks, int repeats) {
  AttentionBuffers b(DType::bf16, {context}, heads, kv_heads, dim,
                     pattern_of(name, heads, context / 4, sinks));
  fill(b.qkv);
  fill(b.d_out);
  const double forward = median_ms(repeats, [&] { b.forward(); }),
               backward = median_ms(repeats, [&] { b.backward(); });
  const double flops = visible_pairs(b.pattern, heads, context) * static_cast<double>(dim) * 1e-9;
  std::printf(
      "%-8s %3lld/%-3lld %4lld %6lld %4lld  %8.3f ms %6.1f TFLOP/s  %8.3f ms %6.1f TFLOP/s  %6.1f MiB\n",
      name.c_str(), static_cast<long long>(heads), static_cast<long long>(kv_heads),
      static_cast<long long>(dim), static_cast<long long>(context), static_cast<long long>(sinks), forward,
      4 * flops / forward, backward, 10 * flops / backward,
      static_cast<double>(b.workspace.bytes()) / (1 << 20));
  std::fflush(stdout);
}

}  // namespace
}  // namespace sinklora::test

int main(int count, char** arguments) {
  using sinklora::test::measure;
  const int repeats = count > 1 ? std::atoi(arguments[1]) : 20;
  try {
    std::printf(
        "pattern  heads    dim context sinks       forward                     backward          scratch\n");
    for (const int64_t context : {8192, 16384, 32768}) {
      measure("full", 32, 32, context, 128, 0, repeats);
      measure("s2", 32, 32, context, 128, 0, repeats);
      measure("sf", 32, 32, context, 128, 4, repeats);
      measure("sf", 32, 32, context, 128, 64, repeats);
    }
    measure("sf", 32, 8, 8192, 128, 4, repeats);
    measure("full", 32, 32, 8192, 64, 0, repeats);
    measure("sf", 32, 32, 8192, 64, 4, repeats);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
