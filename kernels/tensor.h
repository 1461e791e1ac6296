// A view of numbers somewhere: pointer, type, shape. It owns nothing; memory comes from an Arena
// (kernels/arena.h).
#pragma once

#include <array>
#include <cstdint>
#include <initializer_list>
#include <string>

#include "base/error.h"
#include "kernels/dtype.h"

namespace sinklora {

enum class Device : uint8_t { cpu, cuda };

// Row-major. All dimensions but the first are contiguous; rows may be `row_stride` elements apart, so that q,
// k and v are views into one [tokens, q + k + v] buffer.
struct Tensor {
  void* data = nullptr;
  DType dtype = DType::f32;
  Device device = Device::cpu;
  int rank = 0;
  std::array<int64_t, 3> shape{};
  int64_t row_stride = 0;

  Tensor() = default;
  Tensor(void* data, DType dtype, std::initializer_list<int64_t> dims, Device device = Device::cpu)
      : data(data), dtype(dtype), device(device), rank(static_cast<int>(dims.size())) {
    if (dims.size() == 0 || dims.size() > shape.size()) fail_internal("a tensor has 1 to 3 dimensions");
    int i = 0;
    for (const int64_t dim : dims) shape[static_cast<size_t>(i++)] = dim;
    row_stride = row_size();
  }

  explicit operator bool() const { return data != nullptr; }
  int64_t rows() const { return shape[0]; }
  // Elements of one row: the product of all dimensions but the first.
  int64_t row_size() const {
    int64_t size = 1;
    for (int i = 1; i < rank; ++i) size *= shape[static_cast<size_t>(i)];
    return size;
  }
  int64_t size() const { return rank == 0 ? 0 : rows() * row_size(); }
  int64_t bytes() const { return size() * size_of(dtype); }
  bool contiguous() const { return rows() <= 1 || row_stride == row_size(); }

  Tensor row_slice(int64_t begin, int64_t count) const {
    if (begin < 0 || count < 0 || begin + count > rows())
      fail_internal("rows [{}, {}) of a tensor of {} rows", begin, begin + count, rows());
    Tensor view = *this;
    view.data = static_cast<char*>(data) + begin * row_stride * size_of(dtype);
    view.shape[0] = count;
    return view;
  }
  // Columns [begin, begin + count) of a matrix: the same rows, a narrower window.
  Tensor column_slice(int64_t begin, int64_t count) const {
    if (rank != 2 || begin < 0 || count < 0 || begin + count > shape[1])
      fail_internal("columns [{}, {}) of a tensor of {} columns", begin, begin + count, shape[1]);
    Tensor view = *this;
    view.data = static_cast<char*>(data) + begin * size_of(dtype);
    view.shape[1] = count;
    return view;
  }

  template <class T>
  T* as() const {
    return static_cast<T*>(data);
  }
};

std::string describe(const Tensor& tensor);  // "f32 [512, 576]"

}  // namespace sinklora
