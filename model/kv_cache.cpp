#include "model/kv_cache.h"

#include <fmt/format.h>

#include <atomic>
#include <bit>

#include "kernels/backend.h"

namespace sinklora {
namespace {

uint64_t next_identity() {
  static std::atomic<uint64_t> last{0};
  return ++last;
}

}  // namespace

KvCache::KvCache(Ops& ops, const LlamaConfig& config, const KvCachePolicy& policy, int64_t chunk)
    : ops_(ops),
      identity_(next_identity()),
      policy_(policy),
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

void KvCache::expect_to_hold(int64_t tokens) const {
  if (tokens < 1 || tokens > chunk_ || (!policy_.evicts && length_ + tokens > policy_.capacity))
    fail_internal("{} tokens for a KV cache that holds {} of {}, in chunks of {}", tokens, length_,
                  policy_.capacity, chunk_);
}

CacheStep KvCache::step(int64_t layer, int64_t first_row, int64_t tokens) const {
  expect_to_hold(tokens);
  CacheStep step{
      {layers_[static_cast<size_t>(layer)], policy_.keep, {}, length_, most_count()}, first_row, tokens};
  step.kv.cache.count = count();
  if (new_mass_)
    step.kv.new_mass = {new_mass_.data, new_mass_.dtype, {num_kv_heads_, tokens}, new_mass_.device};
  return step;
}

int64_t KvCache::most_count() const {
  return std::min(policy_.capacity, static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(count() + 1))));
}

void KvCache::copy_from(const KvCache& other) {
  if (arena_.bytes() != other.arena_.bytes() || policy_.positions != other.policy_.positions)
    fail_internal("a KV cache of {} bytes is to become one of {}", arena_.bytes(), other.arena_.bytes());
  for (size_t layer = 0; layer < layers_.size(); ++layer)
    for (const auto part :
         {&KvCacheView::k, &KvCacheView::v, &KvCacheView::positions, &KvCacheView::ranks, &KvCacheView::mass})
      if (layers_[layer].*part) ops_.copy(layers_[layer].*part, other.layers_[layer].*part);
  length_ = other.length_;
}

}  // namespace sinklora
