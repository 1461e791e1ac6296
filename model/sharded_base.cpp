#include "model/sharded_base.h"

#include <algorithm>

namespace sinklora {
namespace {

constexpr int64_t kAlignment = 64;  // elements, as in an arena

int64_t aligned(int64_t elements) { return (elements + kAlignment - 1) / kAlignment * kAlignment; }

std::span<std::byte> bytes_of(const Tensor& tensor) {
  return {tensor.as<std::byte>(), static_cast<size_t>(tensor.bytes())};
}

}  // namespace

ShardedBase::ShardedBase(int ranks, int64_t layers, DType dtype)
    : ranks_(ranks),
      dtype_(dtype),
      sizes_(static_cast<size_t>(layers)),
      shares_(static_cast<size_t>(layers)) {
  if (ranks < 1) fail_internal("a base on {} ranks", ranks);
}

void ShardedBase::take(int64_t layer, Tensor* view, std::initializer_list<int64_t> shape) {
  int64_t& size = sizes_[static_cast<size_t>(layer)];
  const Tensor wanted(nullptr, dtype_, shape);
  requests_.push_back({layer, view, wanted, size});
  size += aligned(wanted.size());
}

void ShardedBase::lay_out() {
  if (!active()) return;
  if (std::any_of(sizes_.begin(), sizes_.end(), [&](int64_t size) { return size != sizes_[0]; }))
    fail_internal("a base whose layers are not alike");
  share_ = aligned((sizes_[0] + ranks_ - 1) / ranks_);
  for (Tensor& share : shares_) shares.take(&share, dtype_, {share_});
  for (Slot& slot : slots_) buffers.take(&slot.memory, dtype_, {share_ * ranks_});
}

void ShardedBase::allocate(Ops& ops) {
  if (!active()) return;
  shares.allocate(ops);
  buffers.allocate(ops);
  for (const Request& request : requests_) {
    *request.view = request.shape;
    request.view->device = ops.device();
    request.view->data = slot(request.layer).memory.row_slice(request.offset, request.shape.size()).data;
  }
}

void ShardedBase::connect(Communicator& ranks) {
  if (active() && ranks.world_size() != ranks_)
    fail_internal("a base laid out for {} ranks, and {} are there", ranks_, ranks.world_size());
  communicator_ = &ranks;
}

void ShardedBase::keep(Ops& ops, int64_t layer) {
  if (!active()) return;
  if (!communicator_) fail_internal("shares of a base before connect()");
  slot(layer).layer = -1;
  ops.copy(shares_[static_cast<size_t>(layer)],
           slot(layer).memory.row_slice(communicator_->rank() * share_, share_));
}

void ShardedBase::prefetch(int64_t layer) {
  if (!active() || layer < 0 || layer >= std::ssize(shares_)) return;
  Slot& to = slot(layer);
  if (to.layer == layer) return;
  if (!communicator_) fail_internal("a pass over a sharded base before connect()");
  if (to.gather) fail_internal("layer {} is to be gathered before layer {} was used", layer, to.layer);
  to.layer = layer;
  to.gather =
      communicator_->start_all_gather(bytes_of(shares_[static_cast<size_t>(layer)]), bytes_of(to.memory));
}

void ShardedBase::need(int64_t layer) {
  if (!active()) return;
  prefetch(layer);
  Slot& from = slot(layer);
  if (from.gather) communicator_->wait(*from.gather);
  from.gather.reset();
}

}  // namespace sinklora
