// Times of the ops in bf16 at the shapes of LLaMA-2-7B with 8192 tokens; printed, not checked. Runs on
// request:
//   sinklora_gpu_tests -ns -tc="timing*"
#include <algorithm>

#include "kernels/cuda/cuda_ops.h"
#include "test/cuda/gpu_test.h"

using namespace sinklora;
using namespace sinklora::test;

namespace {

constexpr int64_t T = 8192, H = 4096, F = 11008, V = 32000, kQkv = 3 * H;

class Bench {
 public:
  CudaOps ops{DType::bf16, 0};

  ~Bench() {
    for (void* memory : memory_) ops.release(memory);
    for (cudaEvent_t event : events_) static_cast<void>(cudaEventDestroy(event));
  }
  // Normal numbers: products of zeros run faster than real ones.
  Tensor matrix(int64_t rows, int64_t columns, DType type = DType::bf16) {
    const Tensor tensor = empty(rows, columns, type);
    if (!pattern_.data) {
      std::vector<float> numbers(kPattern);
      const RandomStream random(1, "timing");
      for (size_t i = 0; i < numbers.size(); ++i) numbers[i] = static_cast<float>(random.normal(i));
      pattern_ = empty(1, kPattern, DType::f32);
      ops.upload(pattern_, numbers.data());
    }
    const Tensor flat(tensor.data, type, {1, tensor.size()}, Device::cuda);
    for (int64_t begin = 0; begin < tensor.size(); begin += kPattern) {
      const int64_t count = std::min<int64_t>(kPattern, tensor.size() - begin);
      ops.copy(flat.column_slice(begin, count), pattern_.column_slice(0, count));
    }
    return tensor;
  }
  Tensor empty(int64_t rows, int64_t columns, DType type = DType::bf16) {
    memory_.push_back(ops.allocate(rows * columns * size_of(type)));
    return {memory_.back(), type, {rows, columns}, Device::cuda};
  }
  Tensor ids(int64_t count, int64_t bound) {
    const RandomStream random(2, "ids");
    std::vector<int32_t> numbers(static_cast<size_t>(count));
    for (size_t i = 0; i < numbers.size(); ++i)  // frequent and rare ones, as in text
      numbers[i] = static_cast<int32_t>(static_cast<double>(bound) * std::pow(random.uniform(i), 4));
    memory_.push_back(ops.allocate(count * 4));
    const Tensor tensor(memory_.back(), DType::i32, {count}, Device::cuda);
    ops.upload(tensor, numbers.data());
    return tensor;
  }
  // Median milliseconds.
  template <class Work>
  double milliseconds(Work&& work) {
    constexpr int kRuns = 12;
    std::vector<float> times;
    for (int i = 0; i < kRuns; ++i) {
      SINKLORA_CUDA(cudaEventRecord(events_[0], ops.stream()));
      work();
      SINKLORA_CUDA(cudaEventRecord(events_[1], ops.stream()));
      SINKLORA_CUDA(cudaEventSynchronize(events_[1]));
      float time = 0;
      SINKLORA_CUDA(cudaEventElapsedTime(&time, events_[0], events_[1]));
      if (i >= 2) times.push_back(time);
    }
    std::nth_element(times.begin(), times.begin() + static_cast<std::ptrdiff_t>(times.size() / 2),
                     times.end());
    return times[times.size() / 2];
  }
  template <class Work>
  void memory_bound(const char* name, double bytes, Work&& work) {
    const double ms = milliseconds(work);
    fmt::print("{:<44} {:9.3f} ms {:8.0f} GB/s\n", name, ms, bytes / ms / 1e6);
  }
  template <class Work>
  void compute_bound(const char* name, double flops, Work&& work) {
    const double ms = milliseconds(work);
    fmt::print("{:<44} {:9.3f} ms {:8.0f} TFLOP/s\n", name, ms, flops / ms / 1e9);
  }

 private:
  static constexpr int64_t kPattern = 4'000'037;
  Tensor pattern_;
  std::vector<void*> memory_;
  cudaEvent_t events_[2] = {make_event(), make_event()};
  static cudaEvent_t make_event() {
    cudaEvent_t event = nullptr;
    SINKLORA_CUDA(cudaEventCreate(&event));
    return event;
  }
};

// A linear with adapters of rank 8 on some of its outputs, and room for its backward.
struct BenchLinear {
  BenchLinear(Bench& bench, int64_t in, int64_t out, const std::vector<int64_t>& parts)
      : weight(bench.matrix(out, in)),
        x(bench.matrix(T, in)),
        y(bench.matrix(T, out)),
        d_x(bench.empty(T, in)) {
    if (parts.empty()) return;
    const auto count = static_cast<int64_t>(parts.size());
    const Tensor a = bench.matrix(8 * count, in), d_a = bench.empty(8 * count, in, DType::f32);
    u = bench.empty(T, 8 * count);
    int64_t row = 0;
    for (int64_t i = 0; i < count; ++i) {
      const int64_t rows = parts[static_cast<size_t>(i)];
      adapters.push_back({a.row_slice(8 * i, 8), bench.matrix(rows, 8), row, 8 * i, 2.0});
      gradients.push_back({d_a.row_slice(8 * i, 8), bench.empty(rows, 8, DType::f32)});
      row += rows;
    }
  }
  Tensor weight, x, y, d_x, u;
  std::vector<LinearAdapter> adapters;
  std::vector<AdapterGradient> gradients;
};

}  // namespace

TEST_CASE("timing of memory-bound ops" * doctest::skip()) {
  Bench b;
  CudaOps& ops = b.ops;
  const double row = 2.0 * T * H, wide = 2.0 * T * F;
  {
    const Tensor x = b.matrix(T, F), y = b.empty(T, F);
    b.memory_bound("copy", 2 * wide, [&] { ops.copy(y, x); });
  }
  const Tensor x = b.matrix(T, H), delta = b.matrix(T, H), sum = b.empty(T, H), normed = b.empty(T, H);
  const Tensor r(b.empty(1, T, DType::f32).data, DType::f32, {T}, Device::cuda);
  const Tensor gain(b.matrix(1, H).data, DType::bf16, {H}, Device::cuda);
  const Tensor d_gain(b.empty(1, H, DType::f32).data, DType::f32, {H}, Device::cuda);
  b.memory_bound("rmsnorm with residual", 4 * row,
                 [&] { ops.residual_rmsnorm_forward(sum, normed, r, x, delta, gain, 1e-5); });
  b.memory_bound("rmsnorm rebuilt", 2 * row, [&] { ops.rmsnorm_rebuild(normed, x, r, gain); });
  b.memory_bound("rmsnorm backward, d_gain", 4 * row,
                 [&] { ops.rmsnorm_backward(sum, d_gain, normed, x, r, gain); });
  b.memory_bound("rmsnorm backward, frozen gain", 4 * row,
                 [&] { ops.rmsnorm_backward(sum, {}, normed, x, r, gain); });
  const Tensor gate_up = b.matrix(T, 2 * F), act = b.matrix(T, F);
  b.memory_bound("swiglu", 3 * wide, [&] { ops.swiglu_forward(act, gate_up); });
  b.memory_bound("swiglu backward in place", 5 * wide, [&] { ops.swiglu_backward(gate_up, act, gate_up); });
  const Tensor qkv = b.matrix(T, kQkv), positions = b.ids(T, T);
  const Tensor cosines = b.matrix(T, 64, DType::f32), sines = b.matrix(T, 64, DType::f32);
  b.memory_bound("rope of q and k", 4 * row,
                 [&] { ops.rope(qkv.column_slice(0, 2 * H), positions, cosines, sines, 128, false); });
  const Tensor table = b.matrix(V, H), d_table = b.empty(V, H, DType::f32), ids = b.ids(T, V);
  b.memory_bound("embedding", 2 * row, [&] { ops.embedding_forward(x, table, ids); });
  for (const int64_t tokens : {T, 4 * T}) {
    const Tensor d_out = b.matrix(tokens, H), many = b.ids(tokens, V);
    std::vector<int32_t> numbers(static_cast<size_t>(tokens));
    ops.download(numbers.data(), many);
    std::sort(numbers.begin(), numbers.end());
    const auto distinct = std::unique(numbers.begin(), numbers.end()) - numbers.begin();
    const double bytes = 2.0 * static_cast<double>(tokens * H) + 8.0 * static_cast<double>(distinct * H);
    b.memory_bound(fmt::format("embedding backward, {} tokens, {} ids", tokens, distinct).c_str(), bytes,
                   [&] { ops.embedding_backward(d_table, d_out, many); });
  }
  const Tensor m = b.empty(V, H, DType::f32), v = b.empty(V, H, DType::f32),
               master = b.matrix(V, H, DType::f32);
  b.memory_bound("adamw of V x H", 30.0 * V * H, [&] { ops.adamw(table, master, d_table, m, v, {1e-4}); });
  b.memory_bound("sum of squares of V x H", 4.0 * V * H,
                 [&] { static_cast<void>(ops.sum_of_squares(master)); });
  b.memory_bound("zero of V x H", 4.0 * V * H, [&] { ops.zero(m); });
  b.memory_bound("sum of squares of 32768 (launches, waiting)", 4.0 * 32768,
                 [&] { static_cast<void>(ops.sum_of_squares(master.row_slice(0, 8))); });
}

TEST_CASE("timing of products" * doctest::skip()) {
  Bench b;
  CudaOps& ops = b.ops;
  struct Shape {
    const char* name;
    int64_t in, out;
    std::vector<int64_t> parts;
  };
  for (const Shape& s : {Shape{"qkv", H, kQkv, {}},
                         {"qkv + LoRA 3 x 8", H, kQkv, {H, H, H}},
                         {"o", H, H, {}},
                         {"o + LoRA 8", H, H, {H}},
                         {"gate_up", H, 2 * F, {}},
                         {"down", F, H, {}}}) {
    BenchLinear l(b, s.in, s.out, s.parts);
    const double flops = 2.0 * T * static_cast<double>(s.in) * static_cast<double>(s.out);
    const Linear linear{l.weight, l.adapters};
    b.compute_bound(fmt::format("{} forward", s.name).c_str(), flops,
                    [&] { ops.linear_forward(l.y, l.u, l.x, linear, false); });
    b.compute_bound(fmt::format("{} forward, accumulated", s.name).c_str(), flops,
                    [&] { ops.linear_forward(l.y, l.u, l.x, linear, true); });
    ops.copy(l.y.column_slice(0, std::min(s.in, s.out)), l.x.column_slice(0, std::min(s.in, s.out)));
    b.compute_bound(fmt::format("{} backward", s.name).c_str(), flops, [&] {
      ops.linear_backward(l.d_x, {{}, l.gradients}, l.y, l.x, l.u, linear, false);
    });
  }
  const Tensor hidden = b.matrix(T, H), weight = b.matrix(V, H), d_hidden = b.empty(T, H);
  const Tensor nll(b.empty(1, T, DType::f32).data, DType::f32, {T}, Device::cuda), targets = b.ids(T, V);
  b.compute_bound("head and loss, no gradient", 2.0 * T * V * H,
                  [&] { ops.head_cross_entropy(nll, {}, {}, hidden, weight, targets, 1.0); });
  b.compute_bound("head and loss, d_hidden", 4.0 * T * V * H,
                  [&] { ops.head_cross_entropy(nll, d_hidden, {}, hidden, weight, targets, 1e-4); });

  // The thin products one by one.
  cuda::Gemm gemm(ops.stream());
  const Tensor x = b.matrix(T, H), y = b.matrix(T, kQkv), u = b.matrix(T, 24), a = b.matrix(24, H),
               packed = b.matrix(kQkv, 24), own = b.matrix(H, 8), d_a = b.empty(24, H, DType::f32),
               d_b = b.empty(H, 8, DType::f32);
  const double row = 2.0 * T * H;
  using cuda::plain, cuda::transposed;
  b.memory_bound("u = x A^T, R 24", row, [&] { gemm(u, plain(x), transposed(a)); });
  b.memory_bound("y = u B^T, R 24, 12288 wide", 3 * row, [&] { gemm(y, plain(u), transposed(packed), 2.0); });
  b.memory_bound("y += u B^T, R 24, 12288 wide", 6 * row,
                 [&] { gemm(y, plain(u), transposed(packed), 2.0, true); });
  b.memory_bound("y += u B^T, R 8, three slices", 6 * row, [&] {
    for (int64_t i = 0; i < 3; ++i)
      gemm(y.column_slice(i * H, H), plain(u.column_slice(8 * i, 8)), transposed(own), 2.0, true);
  });
  b.memory_bound("d_u = d_y B, R 24, 12288 wide", 3 * row, [&] { gemm(u, plain(y), plain(packed), 2.0); });
  b.memory_bound("dB += d_y^T u, R 8, three slices", 3 * row, [&] {
    for (int64_t i = 0; i < 3; ++i)
      gemm(d_b, transposed(y.column_slice(i * H, H)), plain(u.column_slice(8 * i, 8)), 2.0, true);
  });
  b.memory_bound("dA += d_u^T x, R 24", row, [&] { gemm(d_a, transposed(u), plain(x), 1.0, true); });
  b.memory_bound("d_x = d_u A, R 24", row, [&] { gemm(x, plain(u), plain(a)); });
  fmt::print("{}{}", ops.describe_plans(), gemm.describe_plans());
}
