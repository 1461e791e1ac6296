#include "model/kv_cache.h"

#include <fmt/format.h>

#include "kernels/backend.h"

namespace sinklora {

KvCache::KvCache(Ops& ops, const LlamaConfig& config, const KvCachePolicy& policy, int64_t chunk)
    : policy_(policy),
      num_kv_heads_(config.num_kv_heads),
      chunk_(chunk),
      layers_(static_cast<size_t>(config.num_layers)) {
  const KvRetention& keep = policy.keep;
  if (policy.capacity < 1 || chunk < 1 ||
      (policy.evicts && keep.sinks + keep.heavy + keep.recent != policy.capacity))
    fail_internal("a KV cache of {} tokens in chunks of {} that keeps {} + {} + {}", policy.capacity, chunk,
                  keep.sinks, keep.heavy, keep.recent);
  // A cache that never evicts has equal positions under either name.
  if (!policy.evicts) policy_.positions = KvPositions::original;
  for (KvCacheView& layer : layers_) {
    for (Tensor* const tensor : {&layer.k, &layer.v})
      arena_.take(tensor, ops.activation_dtype(), {policy.capacity, config.kv_width()});
    if (!policy.evicts) continue;
    arena_.take(&layer.positions, DType::i32, {num_kv_heads_, policy.capacity});
    if (policy_.positions == KvPositions::index)
      arena_.take(&layer.ranks, DType::i32, {num_kv_heads_, policy.capacity});
    if (keep.heavy > 0) arena_.take(&layer.mass, ops.statistic_dtype(), {num_kv_heads_, policy.capacity});
  }
  expect_room(ops.device() == Device::cpu ? "cpu" : "cuda", arena_.bytes(),
              fmt::format("a KV cache of {} tokens", policy.capacity));
  arena_.allocate(ops);
  if (!policy.evicts || keep.heavy == 0) return;
  scratch_.take(&new_mass_, ops.statistic_dtype(), {num_kv_heads_ * chunk});
  scratch_.allocate(ops);
}

CacheStep KvCache::step(int64_t layer, int64_t first_row, int64_t tokens) const {
  if (tokens < 1 || tokens > chunk_ || (!policy_.evicts && length_ + tokens > policy_.capacity))
    fail_internal("{} tokens for a KV cache that holds {} of {}, in chunks of {}", tokens, length_,
                  policy_.capacity, chunk_);
  CacheStep step{layers_[static_cast<size_t>(layer)], policy_.keep, {}, length_, first_row, tokens};
  step.cache.count = count();
  if (new_mass_) step.new_mass = {new_mass_.data, new_mass_.dtype, {num_kv_heads_, tokens}, new_mass_.device};
  return step;
}

}  // namespace sinklora
