// All memory of a run: laid out before the first step, printed by `plan`, allocated once.
#pragma once

#include <string>
#include <vector>

#include "kernels/ops.h"

namespace sinklora {

// First take() every tensor, then allocate() once, which sets the views. Planning stops after the first part.
class Arena {
 public:
  enum class Place : uint8_t { device, host };  // host: memory that transfers go to (Ops::allocate_host)
  explicit Arena(std::string name, Place place = Place::device) : name_(std::move(name)), place_(place) {}
  ~Arena();
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  // Reserves room for a tensor; the view is set when the arena is allocated. `view` must outlive that call.
  void take(Tensor* view, DType dtype, std::initializer_list<int64_t> shape);
  int64_t bytes() const { return bytes_; }
  // All of an arena of one type, padding included, as a vector; after allocate(). Arenas of different types
  // whose requests are alike have their tensors at the same elements.
  Tensor whole() const;
  const std::string& name() const { return name_; }
  Place place() const { return place_; }
  void allocate(Ops& ops);

 private:
  struct Request {
    Tensor* view;
    Tensor shape;
    int64_t offset;
  };
  std::string name_;
  Place place_;
  std::vector<Request> requests_;
  int64_t bytes_ = 0;
  Ops* ops_ = nullptr;
  void* memory_ = nullptr;
};

}  // namespace sinklora
