#include "bench/decode.h"

#include <algorithm>
#include <chrono>

#include "base/error.h"
#include "base/random.h"
#include "bench/common.h"
#include "kernels/backend.h"
#include "kernels/timed_ops.h"
#include "model/llama.h"
#include "model/shapes.h"
#include "train/utilization.h"

namespace sinklora {
namespace {

constexpr int64_t kLeftFree = 512 << 20;  // beside as many caches as fit: scratch of a step, logits

double now_ms() {
  return 1e3 * std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

std::vector<int32_t> random_ids(int64_t count, int64_t vocabulary) {
  const RandomStream random(2, "bench");
  std::vector<int32_t> ids;
  for (int64_t i = 0; i < count; ++i)
    ids.push_back(
        static_cast<int32_t>(random.below(static_cast<uint64_t>(i), static_cast<uint64_t>(vocabulary))));
  return ids;
}

// The prompt through the model, in chunks; returns milliseconds.
double prefill(Llama& llama, KvCache& cache, std::span<const int32_t> ids) {
  const double begin = now_ms();
  for (size_t at = 0; at < ids.size(); at += static_cast<size_t>(cache.chunk())) {
    const Continuation chunk{ids.subspan(at, std::min(static_cast<size_t>(cache.chunk()), ids.size() - at)),
                             &cache};
    llama.absorb({&chunk, 1});
  }
  llama.ops().synchronize();
  return now_ms() - begin;
}

class Sequences {
 public:
  Sequences(Llama& llama, const KvCachePolicy& policy, const DecodeBench& bench)
      : llama_(llama), policy_(policy), chunk_(bench.chunk) {
    add();
  }
  KvCache& first() { return *caches_.front(); }
  int64_t count() const { return static_cast<int64_t>(caches_.size()); }
  int64_t kv_bytes() const { return count() * caches_.front()->bytes(); }
  // Until there are `batch` that remember what the first does, or with 0, until memory is full.
  void fork(const DecodeBench& bench) {
    const auto another = [&] {
      if (bench.batch > 0) return count() < bench.batch;
      return count() < chunk_ && available_memory(bench.device) > caches_.front()->bytes() + kLeftFree;
    };
    while (another()) {
      add();
      caches_.back()->copy_from(first());
    }
  }
  double step(std::span<const int32_t> ids) {  // one of each sequence; returns milliseconds
    std::vector<Continuation> batch;
    for (size_t s = 0; s < caches_.size(); ++s)
      batch.push_back({ids.subspan(s % ids.size(), 1), caches_[s].get()});
    const double begin = now_ms();
    llama_.extend(batch);
    return now_ms() - begin;
  }

 private:
  void add() { caches_.push_back(std::make_unique<KvCache>(llama_.ops(), llama_.config(), policy_, chunk_)); }

  Llama& llama_;
  KvCachePolicy policy_;
  int64_t chunk_;
  std::vector<std::unique_ptr<KvCache>> caches_;
};

double step_bytes(const LlamaConfig& c, const Ops& ops, DType frozen, int64_t sequences, int64_t remembered) {
  const auto weights = static_cast<double>(linear_weights(c) * size_of(frozen));
  return weights + static_cast<double>(2 * c.num_layers * remembered * c.kv_width() * sequences *
                                       size_of(ops.activation_dtype()));
}

}  // namespace

Json bench_decode(const DecodeBench& bench) {
  const int64_t free_memory = available_memory(bench.device);
  std::unique_ptr<Ops> ops = make_ops(bench.device, bench.precision);
  TimedOps* timed = nullptr;
  if (bench.profile) {
    auto watched = std::make_unique<TimedOps>(std::move(ops));
    timed = watched.get();
    ops = std::move(watched);
  }
  const LlamaConfig config = shape_named(bench.shape);
  const int64_t steps = bench.warmup + bench.steps + (bench.profile ? 1 : 0),
                context = bench.prompt + steps + 1;
  const KvCachePolicy policy = make_cache_policy(bench.cache, context);
  ModelOptions model;
  model.frozen_dtype = frozen_dtype(bench.precision);
  PassOptions pass;
  pass.max_tokens = std::max(bench.chunk, bench.batch), pass.max_context = context + bench.chunk;
  Llama llama(*ops, config, model, pass);
  llama.allocate();
  randomize(*ops, llama.weights());

  Sequences sequences(llama, policy, bench);
  const std::vector<int32_t> ids = random_ids(bench.prompt, config.vocab_size);
  const double prefill_ms = prefill(llama, sequences.first(), ids);
  sequences.fork(bench);
  std::vector<double> times;
  for (int64_t i = 0; i < bench.warmup + bench.steps; ++i) {
    const double time = sequences.step(ids);
    if (i >= bench.warmup) times.push_back(time);
  }
  const int64_t remembered = sequences.first().count();
  const double step_ms = median(std::move(times));
  const double bytes = step_bytes(config, *ops, model.frozen_dtype, sequences.count(), remembered);
  const double memory = memory_gib(bench.device, 0, free_memory);
  Json result{{"shape", bench.shape},
              {"cache", bench.cache.kind},
              {"budget", policy.capacity},
              {"prompt", bench.prompt},
              {"batch", sequences.count()},
              {"tokens_per_s", 1e3 * static_cast<double>(sequences.count()) / step_ms},
              {"kv_bytes", sequences.kv_bytes()},
              {"peak_mem_gib", memory},
              {"device", bench.device},
              {"precision", bench.precision},
              {"step_ms", step_ms},
              {"step_bytes", bytes},
              {"gb_per_s", bytes / step_ms * 1e-6},
              {"prefill_ms", prefill_ms},
              {"prefill_tokens_per_s", 1e3 * static_cast<double>(bench.prompt) / prefill_ms}};
  if (timed) {
    timed->record();
    const double time = sequences.step(ids);
    timed->stop();
    result["profile"] = profile_json(timed->rows(), time);
  }
  return result;
}

}  // namespace sinklora
