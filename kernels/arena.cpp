#include "kernels/arena.h"

namespace sinklora {

constexpr int64_t kAlignment = 64;  // elements: 128 bytes or more, the same elements in every type

Arena::~Arena() {
  if (memory_) place_ == Place::host ? ops_->release_host(memory_) : ops_->release(memory_);
}

void Arena::take(Tensor* view, DType dtype, std::initializer_list<int64_t> shape) {
  if (memory_) fail_internal("arena {}: a tensor was asked for after the allocation", name_);
  const Tensor wanted(nullptr, dtype, shape);
  requests_.push_back({view, wanted, bytes_});
  const int64_t unit = kAlignment * size_of(dtype);
  bytes_ += (wanted.bytes() + unit - 1) / unit * unit;
}

Tensor Arena::whole() const {
  if (!memory_) return {};
  const DType dtype = requests_.front().shape.dtype;
  for (const Request& request : requests_)
    if (request.shape.dtype != dtype)
      fail_internal("arena {} holds {} and {}", name_, name_of(dtype), name_of(request.shape.dtype));
  return {memory_, dtype, {bytes_ / size_of(dtype)}, requests_.front().view->device};
}

void Arena::allocate(Ops& ops) {
  if (memory_) fail_internal("arena {} is allocated already", name_);
  ops_ = &ops;
  const bool host = place_ == Place::host;
  if (bytes_ > 0) memory_ = host ? ops.allocate_host(bytes_) : ops.allocate(bytes_);
  for (const Request& request : requests_) {
    *request.view = request.shape;
    request.view->device = host ? Device::cpu : ops.device();
    request.view->data = static_cast<char*>(memory_) + request.offset;
  }
}

}  // namespace sinklora
