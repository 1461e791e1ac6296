#include <unistd.h>

#include <cstring>

#include "kernels/cpu/cpu_ops.h"

namespace sinklora {
namespace {

constexpr int64_t kAlignment = 256;
constexpr int64_t kCopyBlock = 4096;  // elements

void* aligned_memory(int64_t bytes) {
  const int64_t rounded = (std::max<int64_t>(bytes, 1) + kAlignment - 1) / kAlignment * kAlignment;
  // The kernel promises memory that it does not have and kills who uses it: ask how much there is.
  const int64_t present = int64_t{::sysconf(_SC_PHYS_PAGES)} * ::sysconf(_SC_PAGESIZE);
  void* const memory = rounded <= present
                           ? std::aligned_alloc(static_cast<size_t>(kAlignment), static_cast<size_t>(rounded))
                           : nullptr;
  if (!memory)
    fail(ExitCode::does_not_fit,
         "{} bytes of memory were asked for, this machine has {}: take a shorter context", bytes, present);
  return memory;
}

template <class To, class From>
void convert_elements(To* to, const From* from, int64_t count) {
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) to[i] = static_cast<To>(from[i]);
}
template <class From>
void convert_from(BFloat16* to, const From* from, int64_t count) {
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) to[i] = BFloat16(static_cast<float>(from[i]));
}

bool is_float(DType type) { return type != DType::i64 && type != DType::i32; }

// Through double, which holds every other type; the conversions that training runs in its loops do not come
// here.
void convert_any(void* to, DType to_type, const double* from, int64_t count) {
  switch (to_type) {
    case DType::f64:
      return convert_elements(static_cast<double*>(to), from, count);
    case DType::f32:
      return convert_elements(static_cast<float*>(to), from, count);
    case DType::bf16:
      return convert_from(static_cast<BFloat16*>(to), from, count);
    case DType::f16:
      for (int64_t i = 0; i < count; ++i)
        static_cast<uint16_t*>(to)[i] = float_to_half(static_cast<float>(from[i]));
      return;
    default:
      fail_internal("numbers are not converted to {}", name_of(to_type));
  }
}

}  // namespace

template <class T>
void convert(T* to, const void* from, DType from_type, int64_t count) {
  switch (from_type) {
    case DType::f64:
      return convert_elements(to, static_cast<const double*>(from), count);
    case DType::f32:
      return convert_elements(to, static_cast<const float*>(from), count);
    case DType::bf16: {
      const auto* const bits = static_cast<const uint16_t*>(from);
#pragma omp simd
      for (int64_t i = 0; i < count; ++i)
        to[i] = static_cast<T>(std::bit_cast<float>(uint32_t{bits[i]} << 16));
      return;
    }
    case DType::f16:
      for (int64_t i = 0; i < count; ++i)
        to[i] = static_cast<T>(half_to_float(static_cast<const uint16_t*>(from)[i]));
      return;
    default:
      fail_internal("{} numbers are not converted", name_of(from_type));
  }
}
template void convert(float*, const void*, DType, int64_t);
template void convert(double*, const void*, DType, int64_t);

void expect(const Tensor& tensor, std::string_view name, DType dtype, int64_t rows, int64_t columns) {
  if (tensor.device != Device::cpu || tensor.dtype != dtype || tensor.rows() != rows ||
      tensor.row_size() != columns || (!tensor.data && rows * columns > 0))
    fail_internal("{} is {}{}, wanted {} [{}, {}] on the CPU", name, describe(tensor),
                  tensor.data ? "" : " nowhere", name_of(dtype), rows, columns);
}
void expect_weight(const Tensor& tensor, std::string_view name, DType compute, int64_t rows,
                   int64_t columns) {
  const bool allowed = tensor.dtype == DType::f32 || tensor.dtype == DType::bf16;
  expect(tensor, name, allowed ? tensor.dtype : compute, rows, columns);
}
void expect_contiguous(const Tensor& tensor, std::string_view name) {
  if (!tensor.contiguous())
    fail_internal("{}: rows {} elements apart, wanted contiguous", name, tensor.row_stride);
}

void* Scratch::bytes(int64_t wanted) {
  if (wanted > capacity_) {
    memory_.reset();
    capacity_ = 0;
    memory_.reset(aligned_memory(wanted));
    capacity_ = wanted;
  }
  return memory_.get();
}

template <class T>
WeightPanels<T>::WeightPanels(const Tensor& weight, Scratch& scratch) : weight_(weight) {
  const int64_t panels = std::max<int64_t>(1, (weight.size() + kPanelElements - 1) / kPanelElements);
  rows_ = ((weight.rows() + panels - 1) / panels + 15) / 16 * 16;
  count_ = rows_ == 0 ? 0 : (weight.rows() + rows_ - 1) / rows_;
  const bool same_type = weight.dtype == (sizeof(T) == 8 ? DType::f64 : DType::f32);
  if (!same_type) converted_ = scratch.take<T>(rows_ * weight.row_size());
}
template <class T>
Matrix<T> WeightPanels<T>::operator[](int64_t panel) {
  if (!converted_) return matrix<T>(weight_).at(begin(panel), 0);
  const int64_t columns = weight_.row_size(), first = begin(panel), number = rows(panel);
#pragma omp parallel for if (number * columns >= kParallelElements)
  for (int64_t row = 0; row < number; ++row) convert_row(converted_ + row * columns, weight_, first + row);
  return {converted_, columns};
}
template class WeightPanels<float>;
template class WeightPanels<double>;

CpuOps::CpuOps(DType compute) : compute_(compute) {
  if (compute != DType::f32 && compute != DType::f64)
    fail_internal("the CPU backend computes in f32 or f64, not in {}", name_of(compute));
}
std::unique_ptr<Ops> make_cpu_ops(DType compute) { return std::make_unique<CpuOps>(compute); }

void* CpuOps::allocate(int64_t bytes) {
  if (bytes < 0) fail_internal("{} bytes of memory were asked for", bytes);
  void* const memory = aligned_memory(bytes);
  std::memset(memory, 0, static_cast<size_t>(bytes));
  return memory;
}
void CpuOps::release(void* memory) { std::free(memory); }

void CpuOps::start_offload(void* host, const Tensor& from, int) { download(host, from); }
void CpuOps::start_fetch(const Tensor& to, const void* host, int) { upload(to, host); }

int64_t CpuOps::scratch_bytes(const PassShape& shape) const {
  return head_scratch_bytes(shape.tokens, shape.vocabulary, shape.hidden, shape.training);
}

void CpuOps::upload(const Tensor& to, const void* host) {
  expect_contiguous(to, "upload");
  if (to.size() > 0) std::memcpy(to.data, host, static_cast<size_t>(to.bytes()));
}
void CpuOps::download(void* host, const Tensor& from) {
  expect_contiguous(from, "download");
  if (from.size() > 0) std::memcpy(host, from.data, static_cast<size_t>(from.bytes()));
}

void CpuOps::zero(const Tensor& to) {
  const int64_t bytes = to.row_size() * size_of(to.dtype), stride = to.row_stride * size_of(to.dtype);
#pragma omp parallel for if (to.size() >= kParallelElements)
  for (int64_t row = 0; row < to.rows(); ++row)
    std::memset(static_cast<char*>(to.data) + row * stride, 0, static_cast<size_t>(bytes));
}

void CpuOps::copy(const Tensor& to, const Tensor& from) {
  if (to.rows() != from.rows() || to.row_size() != from.row_size())
    fail_internal("copy of {} to {}: shapes differ", describe(from), describe(to));
  const bool same = to.dtype == from.dtype;
  if (!same && !(is_float(to.dtype) && is_float(from.dtype)))
    fail_internal("copy of {} to {}: only float types are converted", describe(from), describe(to));
  const int64_t columns = to.row_size(), blocks = (columns + kCopyBlock - 1) / kCopyBlock;
#pragma omp parallel for collapse(2) if (to.size() >= kParallelElements)
  for (int64_t row = 0; row < to.rows(); ++row) {
    for (int64_t block = 0; block < blocks; ++block) {
      const int64_t column = block * kCopyBlock, count = std::min(kCopyBlock, columns - column);
      char* const target = static_cast<char*>(to.data) + (row * to.row_stride + column) * size_of(to.dtype);
      const char* const source =
          static_cast<const char*>(from.data) + (row * from.row_stride + column) * size_of(from.dtype);
      if (same) {
        std::memcpy(target, source, static_cast<size_t>(count * size_of(to.dtype)));
      } else {
        double through[kCopyBlock];
        convert(through, source, from.dtype, count);
        convert_any(target, to.dtype, through, count);
      }
    }
  }
}

}  // namespace sinklora
