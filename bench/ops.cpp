#include "bench/ops.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <functional>
#include <numeric>

#include "base/error.h"
#include "base/random.h"
#include "bench/common.h"
#include "kernels/backend.h"
#include "kernels/operation_counts.h"
#include "model/shapes.h"

namespace sinklora {
namespace {

constexpr double kMeasurementMs = 10;  // at least, a measurement
constexpr double kMostCalls = 1000;
constexpr int64_t kCacheBytes = int64_t{256} << 20;

// Copies of operands of this many bytes.
int64_t copies_of(int64_t bytes) {
  return std::clamp<int64_t>((kCacheBytes + bytes - 1) / std::max<int64_t>(1, bytes), 2, 64);
}

// Calls run(0), run(1), ... run(copies - 1), run(0) ... and times them.
class Stopwatch {
 public:
  Stopwatch(Ops& ops, int64_t copies, int64_t warmup, int64_t repeat)
      : ops_(ops), copies_(copies), warmup_(warmup), repeat_(repeat) {}

  // Median milliseconds of a call.
  double milliseconds(const std::function<void(int64_t)>& run) {
    // The first calls make scratch memory grow and choose algorithms.
    measure(run, std::max<int64_t>(1, warmup_));
    const auto calls = static_cast<int64_t>(
        std::clamp(std::ceil(kMeasurementMs / std::max(1e-3, measure(run, 1))), 1.0, kMostCalls));
    std::vector<double> times;
    for (int64_t i = 0; i < repeat_; ++i) times.push_back(measure(run, calls) / static_cast<double>(calls));
    return median(std::move(times));
  }

 private:
  double measure(const std::function<void(int64_t)>& run, int64_t calls) {
    ops_.synchronize();
    const auto begin = std::chrono::steady_clock::now();
    for (int64_t i = 0; i < calls; ++i) run(next_++ % copies_);
    ops_.synchronize();
    return 1e3 * std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  }

  Ops& ops_;
  int64_t copies_, warmup_, repeat_, next_ = 0;
};

// ---- attention

struct AttentionTensors {
  Tensor qkv, d_qkv;  // act [T, (Hq + 2 Hkv) D]
  Tensor out, d_out;  // act [T, Hq D]
  Tensor lse;         // stat [Hq, T]
};

class AttentionRun {
 public:
  AttentionRun(Ops& ops, const NormalNumbers& numbers, const AttentionBench& bench, int64_t context)
      : ops_(ops), query_width_(bench.heads * bench.head_dim), kv_width_(bench.kv_heads * bench.head_dim) {
    const int64_t tokens = bench.batch * context, width = query_width_ + 2 * kv_width_;
    const DType act = ops.activation_dtype();
    copies_.resize(static_cast<size_t>(copies_of(tokens * (width + query_width_) * size_of(act))));
    for (AttentionTensors& t : copies_) {
      for (Tensor* tensor : {&t.qkv, &t.d_qkv}) arena_.take(tensor, act, {tokens, width});
      for (Tensor* tensor : {&t.out, &t.d_out}) arena_.take(tensor, act, {tokens, query_width_});
      arena_.take(&t.lse, ops.statistic_dtype(), {bench.heads, tokens});
    }
    sequences_.count = bench.batch;
    sequences_.max_length = context;
    arena_.take(&sequences_.offsets, DType::i64, {bench.batch + 1});
    arena_.allocate(ops);
    std::vector<int64_t> offsets;
    for (int64_t s = 0; s <= bench.batch; ++s) offsets.push_back(s * context);
    ops.upload(sequences_.offsets, offsets.data());
    for (const AttentionTensors& t : copies_) {
      numbers.fill(t.qkv);
      numbers.fill(t.d_out);
    }
  }

  int64_t copies() const { return static_cast<int64_t>(copies_.size()); }
  void forward(int64_t copy, const AttentionPattern& pattern, int64_t head_dim) {
    const AttentionTensors& t = copies_[static_cast<size_t>(copy)];
    ops_.attention_forward(t.out, t.lse, part(t.qkv, 0), part(t.qkv, 1), part(t.qkv, 2), sequences_, pattern,
                           head_dim);
  }
  void backward(int64_t copy, const AttentionPattern& pattern, int64_t head_dim) {
    const AttentionTensors& t = copies_[static_cast<size_t>(copy)];
    ops_.attention_backward(part(t.d_qkv, 0), part(t.d_qkv, 1), part(t.d_qkv, 2), t.d_out, part(t.qkv, 0),
                            part(t.qkv, 1), part(t.qkv, 2), t.out, t.lse, sequences_, pattern, head_dim);
  }

 private:
  // q, k or v in a row of all three.
  Tensor part(const Tensor& qkv, int64_t index) const {
    if (index == 0) return qkv.column_slice(0, query_width_);
    return qkv.column_slice(query_width_ + (index - 1) * kv_width_, kv_width_);
  }

  Ops& ops_;
  int64_t query_width_, kv_width_;
  Arena arena_{"attention"};
  std::vector<AttentionTensors> copies_;
  SequenceView sequences_;
};

// ---- linears

// A linear, its adapters of one rank, and what goes in and out of its two passes.
struct LinearTensors {
  Tensor weight, x, y, d_x, u, a, d_a;
  std::vector<LinearAdapter> adapters;
  std::vector<AdapterGradient> gradients;
};

class LinearRun {
 public:
  // `parts`: outputs of the projections that are stacked.
  LinearRun(Ops& ops, const NormalNumbers& numbers, DType weight_dtype, int64_t tokens, int64_t in,
            const std::vector<int64_t>& parts, int64_t rank)
      : ops_(ops) {
    const int64_t out = std::accumulate(parts.begin(), parts.end(), int64_t{0});
    const int64_t all_ranks = rank * static_cast<int64_t>(parts.size());
    const DType act = ops.activation_dtype(), stat = ops.statistic_dtype();
    const int64_t bytes = out * in * size_of(weight_dtype) + tokens * (in + out) * size_of(act);
    copies_.resize(static_cast<size_t>(copies_of(bytes)));
    for (LinearTensors& t : copies_) {
      arena_.take(&t.weight, weight_dtype, {out, in});
      for (Tensor* tensor : {&t.x, &t.d_x}) arena_.take(tensor, act, {tokens, in});
      arena_.take(&t.y, act, {tokens, out});
      if (rank == 0) continue;
      arena_.take(&t.u, act, {tokens, all_ranks});
      arena_.take(&t.a, act, {all_ranks, in});
      arena_.take(&t.d_a, stat, {all_ranks, in});
      t.adapters.resize(parts.size());
      t.gradients.resize(parts.size());
      for (size_t i = 0; i < parts.size(); ++i) {
        arena_.take(&t.adapters[i].b, act, {parts[i], rank});
        arena_.take(&t.gradients[i].b, stat, {parts[i], rank});
      }
    }
    arena_.allocate(ops);
    for (LinearTensors& t : copies_) {
      int64_t row = 0;
      for (size_t i = 0; i < t.adapters.size(); ++i) {
        const int64_t u_begin = static_cast<int64_t>(i) * rank;
        t.adapters[i] = {t.a.row_slice(u_begin, rank), t.adapters[i].b, row, u_begin, 2.0};
        t.gradients[i].a = t.d_a.row_slice(u_begin, rank);
        row += parts[i];
        numbers.fill(t.adapters[i].b);
      }
      if (t.a) numbers.fill(t.a);
      numbers.fill(t.weight);
      numbers.fill(t.x);
    }
  }

  int64_t copies() const { return static_cast<int64_t>(copies_.size()); }
  Linear linear(int64_t copy) const { return {at(copy).weight, at(copy).adapters}; }
  LinearGradient gradient(int64_t copy) const { return {{}, at(copy).gradients}; }
  void forward(int64_t copy) { ops_.linear_forward(at(copy).y, at(copy).u, at(copy).x, linear(copy)); }
  void backward(int64_t copy) {  // y stands in for d_y
    const LinearTensors& t = at(copy);
    ops_.linear_backward(t.d_x, gradient(copy), t.y, t.x, t.u, linear(copy));
  }

 private:
  const LinearTensors& at(int64_t copy) const { return copies_[static_cast<size_t>(copy)]; }

  Ops& ops_;
  Arena arena_{"linear"};
  std::vector<LinearTensors> copies_;
};

struct HeadTensors {
  Tensor weight, hidden, d_hidden, nll, targets;
};

Json gemm_row(const GemmBench& bench, const char* linear, const char* direction, int64_t rank, int64_t in,
              int64_t out, double ms, double operations) {
  return {{"shape", bench.shape},
          {"linear", linear},
          {"direction", direction},
          {"lora_rank", rank},
          {"tokens", bench.context},
          {"in", in},
          {"out", out},
          {"precision", bench.precision},
          {"ms", ms},
          {"tflops", operations / ms * 1e-9},
          {"device", bench.device}};
}

void bench_head(Ops& ops, const NormalNumbers& numbers, const GemmBench& bench, const LlamaConfig& config,
                Json& rows) {
  const int64_t tokens = bench.context, hidden = config.hidden_size, vocabulary = config.vocab_size;
  const DType act = ops.activation_dtype(), weight = frozen_dtype(bench.precision);
  std::vector<HeadTensors> copies(
      static_cast<size_t>(copies_of(vocabulary * hidden * size_of(weight) + tokens * hidden * size_of(act))));
  Arena arena("head");
  for (HeadTensors& t : copies) {
    arena.take(&t.weight, weight, {vocabulary, hidden});
    for (Tensor* tensor : {&t.hidden, &t.d_hidden}) arena.take(tensor, act, {tokens, hidden});
    arena.take(&t.nll, ops.statistic_dtype(), {tokens});
    arena.take(&t.targets, DType::i32, {tokens});
  }
  arena.allocate(ops);
  const RandomStream random(2, "bench");
  std::vector<int32_t> targets(static_cast<size_t>(tokens));
  for (size_t i = 0; i < targets.size(); ++i)
    targets[i] = static_cast<int32_t>(random.below(i, static_cast<uint64_t>(vocabulary)));
  for (const HeadTensors& t : copies) {
    ops.upload(t.targets, targets.data());
    numbers.fill(t.weight);
    numbers.fill(t.hidden);
  }
  Stopwatch watch(ops, static_cast<int64_t>(copies.size()), bench.warmup, bench.repeat);
  for (const bool gradient : {false, true}) {
    const double ms = watch.milliseconds([&](int64_t copy) {
      const HeadTensors& t = copies[static_cast<size_t>(copy)];
      ops.head_cross_entropy(t.nll, gradient ? t.d_hidden : Tensor{}, {}, t.hidden, t.weight, t.targets,
                             1.0 / static_cast<double>(tokens));
    });
    rows.push_back(gemm_row(bench, "head", gradient ? "forward+backward" : "forward", 0, hidden, vocabulary,
                            ms, head_operations(tokens, copies[0].weight, gradient, false)));
  }
}

}  // namespace

Json bench_attention(const AttentionBench& bench) {
  if (bench.heads % bench.kv_heads != 0)
    fail_usage("--kv-heads {}: {} query heads (--heads) are not a multiple of them", bench.kv_heads,
               bench.heads);
  const std::unique_ptr<Ops> ops = make_ops(bench.device, bench.precision);
  const NormalNumbers numbers(*ops, 0, 1);
  // The CPU computes attention in f32, whatever its weights are kept in.
  const char* const precision = ops->activation_dtype() == DType::bf16 ? "bf16" : "fp32";
  Json rows = Json::array();
  for (const int64_t context : bench.contexts) {
    AttentionRun run(*ops, numbers, bench, context);
    for (const std::string& name : bench.patterns) {
      AttentionOptions options = bench.attention;
      options.kind = name;
      const AttentionPattern pattern = make_pattern(options, context, bench.heads);
      const double pairs = static_cast<double>(bench.batch) *
                           static_cast<double>(visible_pairs(pattern, bench.heads, context));
      for (int64_t copy = 0; copy < run.copies(); ++copy) run.forward(copy, pattern, bench.head_dim);
      for (const bool forward : {true, false}) {
        Stopwatch watch(*ops, run.copies(), bench.warmup, bench.repeat);
        const double ms = watch.milliseconds([&](int64_t copy) {
          forward ? run.forward(copy, pattern, bench.head_dim) : run.backward(copy, pattern, bench.head_dim);
        });
        const double operations = forward ? attention_forward_operations(pairs, bench.head_dim)
                                          : attention_backward_operations(pairs, bench.head_dim);
        rows.push_back({{"pattern", name},
                        {"direction", forward ? "forward" : "backward"},
                        {"batch", bench.batch},
                        {"heads", bench.heads},
                        {"kv_heads", bench.kv_heads},
                        {"context", context},
                        {"head_dim", bench.head_dim},
                        {"sinks", pattern.num_sinks},
                        {"precision", precision},
                        {"ms", ms},
                        {"tflops", operations / ms * 1e-9},
                        {"device", bench.device}});
      }
    }
  }
  return rows;
}

Json bench_gemm(const GemmBench& bench) {
  const LlamaConfig config = shape_named(bench.shape);
  const std::unique_ptr<Ops> ops = make_ops(bench.device, bench.precision);
  const NormalNumbers numbers(*ops, 0, 0.02);
  const int64_t hidden = config.hidden_size, wide = config.intermediate_size;
  struct Shape {
    const char* name;
    int64_t in;
    std::vector<int64_t> parts;
  };
  const std::vector<Shape> shapes{
      {"qkv", hidden, {config.query_width(), config.kv_width(), config.kv_width()}},
      {"output", config.query_width(), {hidden}},
      {"gate_up", hidden, {wide, wide}},
      {"down", wide, {hidden}}};
  std::vector<int64_t> ranks{0};
  if (bench.lora_rank > 0) ranks.push_back(bench.lora_rank);
  Json rows = Json::array();
  for (const Shape& shape : shapes) {
    for (const int64_t rank : ranks) {
      LinearRun run(*ops, numbers, frozen_dtype(bench.precision), bench.context, shape.in, shape.parts, rank);
      const Linear linear = run.linear(0);
      const int64_t out = linear.weight.rows();
      for (int64_t copy = 0; copy < run.copies(); ++copy) run.forward(copy);
      Stopwatch watch(*ops, run.copies(), bench.warmup, bench.repeat);
      double ms = watch.milliseconds([&](int64_t copy) { run.forward(copy); });
      rows.push_back(gemm_row(bench, shape.name, "forward", rank, shape.in, out, ms,
                              linear_forward_operations(bench.context, linear)));
      ms = watch.milliseconds([&](int64_t copy) { run.backward(copy); });
      rows.push_back(gemm_row(bench, shape.name, "backward", rank, shape.in, out, ms,
                              linear_backward_operations(bench.context, linear, run.gradient(0), true)));
    }
  }
  bench_head(*ops, numbers, bench, config, rows);
  return rows;
}

}  // namespace sinklora
