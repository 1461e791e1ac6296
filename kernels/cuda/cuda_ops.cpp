// Memory, transfers, and what a kernel reported.
#include "kernels/cuda/cuda_ops.h"

#include <algorithm>
#include <cstring>

#include "kernels/cuda/attention.h"
#include "kernels/cuda_backend.h"

namespace sinklora {
namespace cuda {

constexpr int64_t kStaging = int64_t{8} << 20;  // bytes of a half

void* allocate_device(int64_t bytes) {
  void* memory = nullptr;
  const cudaError_t code = cudaMalloc(&memory, static_cast<size_t>(std::max<int64_t>(bytes, 1)));
  if (code != cudaErrorMemoryAllocation) {
    check(code, "cudaMalloc");
    return memory;
  }
  static_cast<void>(cudaGetLastError());  // this error is handled
  size_t free = 0, total = 0;
  SINKLORA_CUDA(cudaMemGetInfo(&free, &total));
  fail(
      ExitCode::does_not_fit,
      "{} bytes of GPU memory were asked for, {} of {} are free: take a shorter context or --recompute block",
      bytes, free, total);
}

PinnedMemory allocate_pinned(int64_t bytes) {
  void* memory = nullptr;
  const cudaError_t code = cudaHostAlloc(&memory, static_cast<size_t>(bytes), cudaHostAllocDefault);
  if (code == cudaErrorMemoryAllocation) {
    static_cast<void>(cudaGetLastError());  // this error is handled
    fail(ExitCode::does_not_fit,
         "{} bytes of page-locked host memory were asked for and are not there; leave --offload away, or "
         "free host memory",
         bytes);
  }
  check(code, "cudaHostAlloc");
  return PinnedMemory(memory);
}

void Workspace::reserve(int64_t bytes) {
  used_ = 0;
  if (bytes <= capacity_) return;
  memory_.reset();  // waits for the ops that use it
  ++growths_;
  capacity_ = 0;
  memory_.reset(allocate_device(bytes));
  // NaNs: what reads scratch that nobody wrote shows in the result.
  SINKLORA_CUDA(cudaMemset(memory_.get(), 0xff, static_cast<size_t>(bytes)));
  SINKLORA_CUDA(cudaStreamSynchronize(nullptr));
  capacity_ = bytes;
}

void* Workspace::take(int64_t bytes) {
  if (used_ + bytes > capacity_)
    fail_internal("{} bytes of scratch memory beyond the {} reserved", bytes, capacity_);
  void* const piece = static_cast<char*>(memory_.get()) + used_;
  used_ += aligned(bytes);
  return piece;
}

Tensor Workspace::take(DType dtype, int64_t rows, int64_t columns) {
  return {take(rows * columns * size_of(dtype)), dtype, {rows, columns}, Device::cuda};
}

void expect(const Tensor& tensor, std::string_view name, DType dtype, int64_t rows, int64_t columns) {
  if (tensor.device != Device::cuda || tensor.dtype != dtype || tensor.rows() != rows ||
      tensor.row_size() != columns || (!tensor.data && rows * columns > 0))
    fail_internal("{} is {}{}, wanted {} [{}, {}] on the GPU", name, describe(tensor),
                  tensor.data ? "" : " nowhere", name_of(dtype), rows, columns);
}
void expect_weight(const Tensor& tensor, std::string_view name, int64_t rows, int64_t columns) {
  expect(tensor, name, tensor.dtype == DType::bf16 ? DType::bf16 : DType::f32, rows, columns);
}
void expect_contiguous(const Tensor& tensor, std::string_view name) {
  if (!tensor.contiguous())
    fail_internal("{}: rows {} elements apart, wanted contiguous", name, tensor.row_stride);
}

}  // namespace cuda

CudaOps::CudaOps(DType activation, int device_index) : activation_(activation) {
  if (activation != DType::f32 && activation != DType::bf16)
    fail_internal("the CUDA backend computes in f32 and bf16, not in {}", name_of(activation));
  if (const int count = cuda_device_count(); device_index < 0 || device_index >= count)
    fail_usage("--device cuda: GPU {} was asked for, {} are there; use fewer, or --device cpu", device_index,
               count);
  SINKLORA_CUDA(cudaSetDevice(device_index));
  SINKLORA_CUDA(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking));
  gemm_ = std::make_unique<cuda::Gemm>(stream_);
  SINKLORA_CUDA(cudaStreamCreateWithFlags(&transfers_, cudaStreamNonBlocking));
  for (cudaEvent_t* event : {&sent_[0], &sent_[1], &computed_, &transferred_[0], &transferred_[1]})
    SINKLORA_CUDA(cudaEventCreateWithFlags(event, cudaEventDisableTiming));
  fault_.reset(cuda::allocate_device(sizeof(cuda::Fault)));
  SINKLORA_CUDA(cudaMemsetAsync(fault_.get(), 0, sizeof(cuda::Fault), stream_));
  staging_ = cuda::allocate_pinned(2 * cuda::kStaging);
  answer_ = cuda::allocate_pinned(256);
}

// A destructor must not throw: errors of a lost context were thrown by whoever waited last.
CudaOps::~CudaOps() {
  static_cast<void>(cudaStreamSynchronize(stream_));
  static_cast<void>(cudaStreamSynchronize(transfers_));
  gemm_.reset();
  for (cudaEvent_t event : {sent_[0], sent_[1], computed_, transferred_[0], transferred_[1]})
    static_cast<void>(cudaEventDestroy(event));
  static_cast<void>(cudaStreamDestroy(transfers_));
  static_cast<void>(cudaStreamDestroy(stream_));
}

void* CudaOps::allocate(int64_t bytes) {
  cuda::DeviceMemory memory(cuda::allocate_device(bytes));
  SINKLORA_CUDA(cudaMemsetAsync(memory.get(), 0, static_cast<size_t>(bytes), stream_));
  return memory.release();
}

void CudaOps::release(void* memory) { static_cast<void>(cudaFree(memory)); }  // called by destructors

void CudaOps::upload(const Tensor& to, const void* host) {
  cuda::expect_contiguous(to, "upload");
  const int64_t bytes = to.bytes();
  for (int64_t begin = 0; begin < bytes; begin += cuda::kStaging) {
    const auto count = static_cast<size_t>(std::min(cuda::kStaging, bytes - begin));
    char* const half = static_cast<char*>(staging_.get()) + next_half_ * cuda::kStaging;
    SINKLORA_CUDA(cudaEventSynchronize(sent_[next_half_]));
    std::memcpy(half, static_cast<const char*>(host) + begin, count);
    SINKLORA_CUDA(cudaMemcpyAsync(to.as<char>() + begin, half, count, cudaMemcpyHostToDevice, stream_));
    SINKLORA_CUDA(cudaEventRecord(sent_[next_half_], stream_));
    next_half_ = 1 - next_half_;
  }
}

void CudaOps::download(void* host, const Tensor& from) {
  cuda::expect_contiguous(from, "download");
  const int64_t bytes = from.bytes();
  wait();  // for the ops before, and for uploads that still use the staging memory
  const auto length = [&](int64_t begin) {
    return static_cast<size_t>(std::min(cuda::kStaging, bytes - begin));
  };
  const auto start = [&](int64_t begin, int half) {
    SINKLORA_CUDA(cudaMemcpyAsync(static_cast<char*>(staging_.get()) + half * cuda::kStaging,
                                  from.as<char>() + begin, length(begin), cudaMemcpyDeviceToHost, stream_));
    SINKLORA_CUDA(cudaEventRecord(sent_[half], stream_));
  };
  int half = 0;
  if (bytes > 0) start(0, half);
  for (int64_t begin = 0; begin < bytes; begin += cuda::kStaging, half = 1 - half) {
    if (begin + cuda::kStaging < bytes) start(begin + cuda::kStaging, 1 - half);
    SINKLORA_CUDA(cudaEventSynchronize(sent_[half]));
    std::memcpy(static_cast<char*>(host) + begin, static_cast<char*>(staging_.get()) + half * cuda::kStaging,
                length(begin));
  }
}

void CudaOps::zero(const Tensor& to) {
  const auto size = static_cast<size_t>(size_of(to.dtype));
  if (to.contiguous()) {
    SINKLORA_CUDA(cudaMemsetAsync(to.data, 0, static_cast<size_t>(to.bytes()), stream_));
  } else {
    SINKLORA_CUDA(cudaMemset2DAsync(to.data, static_cast<size_t>(to.row_stride) * size, 0,
                                    static_cast<size_t>(to.row_size()) * size, static_cast<size_t>(to.rows()),
                                    stream_));
  }
}

void CudaOps::copy(const Tensor& to, const Tensor& from) {
  if (to.rows() != from.rows() || to.row_size() != from.row_size())
    fail_internal("copy of {} to {}: shapes differ", describe(from), describe(to));
  if (to.dtype != from.dtype) return cuda::launch_conversion(to, from, stream_);
  const auto size = static_cast<size_t>(size_of(to.dtype));
  const auto width = static_cast<size_t>(to.row_size()) * size;
  const auto pitch = [&](const Tensor& t) {
    return std::max(width, static_cast<size_t>(t.row_stride) * size);
  };
  if (to.contiguous() && from.contiguous()) {
    SINKLORA_CUDA(cudaMemcpyAsync(to.data, from.data, static_cast<size_t>(to.bytes()),
                                  cudaMemcpyDeviceToDevice, stream_));
  } else {
    SINKLORA_CUDA(cudaMemcpy2DAsync(to.data, pitch(to), from.data, pitch(from), width,
                                    static_cast<size_t>(to.rows()), cudaMemcpyDeviceToDevice, stream_));
  }
}

void CudaOps::synchronize() { wait(); }

void* CudaOps::allocate_host(int64_t bytes) { return cuda::allocate_pinned(bytes).release(); }
void CudaOps::release_host(void* memory) {
  static_cast<void>(cudaFreeHost(memory));
}  // called by destructors

void CudaOps::start_transfer(void* to, const void* from, int64_t bytes, cudaMemcpyKind kind, int slot) {
  SINKLORA_CUDA(cudaEventRecord(computed_, stream_));
  SINKLORA_CUDA(cudaStreamWaitEvent(transfers_, computed_));
  SINKLORA_CUDA(cudaMemcpyAsync(to, from, static_cast<size_t>(bytes), kind, transfers_));
  SINKLORA_CUDA(cudaEventRecord(transferred_[slot], transfers_));
}
void CudaOps::start_offload(void* host, const Tensor& from, int slot) {
  cuda::expect_contiguous(from, "start_offload");
  start_transfer(host, from.data, from.bytes(), cudaMemcpyDeviceToHost, slot);
}
void CudaOps::start_fetch(const Tensor& to, const void* host, int slot) {
  cuda::expect_contiguous(to, "start_fetch");
  start_transfer(to.data, host, to.bytes(), cudaMemcpyHostToDevice, slot);
}
void CudaOps::finish_transfer(int slot) { SINKLORA_CUDA(cudaStreamWaitEvent(stream_, transferred_[slot])); }

void CudaOps::repeat(uint64_t key, const std::function<void()>& ops) {
  recording_.run(
      key, [&] { return scratch_.growths() + weights_.growths(); }, ops, stream_);
}

void CudaOps::wait() {
  auto* const fault = static_cast<cuda::Fault*>(answer_.get());
  SINKLORA_CUDA(cudaMemcpyAsync(fault, fault_.get(), sizeof *fault, cudaMemcpyDeviceToHost, stream_));
  SINKLORA_CUDA(cudaStreamSynchronize(stream_));
  if (fault->kind == cuda::Fault::none) return;
  SINKLORA_CUDA(cudaMemsetAsync(fault_.get(), 0, sizeof *fault, stream_));
  if (fault->kind == cuda::Fault::token_id)
    fail_input("token {} has id {}, the embedding has rows 0 to {}: data and model do not belong together",
               fault->token, fault->value, fault->limit - 1);
  if (fault->kind == cuda::Fault::target)
    fail_input("token {} has target {}, the model's vocabulary has {}: data and model do not belong together",
               fault->token, fault->value, fault->limit);
  fail_internal("rope: token {} has position {}, the table has {}", fault->token, fault->value, fault->limit);
}

Tensor CudaOps::converted(const Tensor& weight) {
  if (weight.dtype == activation_) return weight;
  weights_.reserve(weight.size() * size_of(activation_));
  const Tensor copy = weights_.take(activation_, weight.rows(), weight.row_size());
  cuda::launch_conversion(copy, weight, stream_);
  return copy;
}

CudaOps::ScratchNeeds CudaOps::scratch_needs(const PassShape& s) const {
  ScratchNeeds needs{cuda::head_scratch_bytes(s.tokens, s.vocabulary), 0};
  if (s.rank > 0)
    needs.ops = std::max(needs.ops, cuda::linear_scratch_bytes(s.tokens, s.widest, s.rank, activation_));
  if (s.training)
    needs.ops = std::max(needs.ops, cuda::attention_backward_workspace({.dtype = activation_,
                                                                        .tokens = s.tokens,
                                                                        .sequences = s.sequences,
                                                                        .num_heads = s.num_heads,
                                                                        .num_kv_heads = s.num_kv_heads,
                                                                        .head_dim = s.head_dim},
                                                                       s.pattern));
  if (s.weight_dtype != activation_) needs.weight = s.largest_weight * size_of(activation_);
  return needs;
}

int64_t CudaOps::scratch_bytes(const PassShape& shape) const {
  const ScratchNeeds needs = scratch_needs(shape);
  return needs.ops + needs.weight + gemm_->workspace_bytes();
}

void CudaOps::reserve_scratch(const PassShape& shape) {
  const ScratchNeeds needs = scratch_needs(shape);
  scratch_.reserve(needs.ops);
  weights_.reserve(needs.weight);
}

std::unique_ptr<Ops> make_cuda_ops(DType activation, int index) {
  return std::make_unique<CudaOps>(activation, index);
}

int cuda_device_count() {
  int count = 0;
  const cudaError_t code = cudaGetDeviceCount(&count);
  if (code != cudaSuccess || count < 1)
    fail_usage("--device cuda: no GPU is there ({}); use --device cpu", cudaGetErrorString(code));
  return count;
}

CudaDescription describe_cuda() {
  int runtime = 0, driver = 0, count = 0;
  const auto text = [](int version) { return fmt::format("{}.{}", version / 1000, version % 1000 / 10); };
  CudaDescription found;
  if (cudaRuntimeGetVersion(&runtime) != cudaSuccess) return {"runtime unknown", {}};
  found.version = "runtime " + text(runtime);
  if (cudaDriverGetVersion(&driver) != cudaSuccess || driver == 0) return {found.version + ", no driver", {}};
  found.version += ", driver " + text(driver);
  if (cudaGetDeviceCount(&count) != cudaSuccess) count = 0;
  for (int index = 0; index < count; ++index)
    if (cudaDeviceProp device{}; cudaGetDeviceProperties(&device, index) == cudaSuccess)
      found.devices.push_back(fmt::format("{}, {:.1f} GiB, compute capability {}.{}", device.name,
                                          static_cast<double>(device.totalGlobalMem) / (1 << 30),
                                          device.major, device.minor));
  return found;
}

int64_t cuda_available_memory(int index) {
  if (index >= 0) SINKLORA_CUDA(cudaSetDevice(index));
  size_t free = 0, total = 0;
  SINKLORA_CUDA(cudaMemGetInfo(&free, &total));
  return narrow<int64_t>(free, "GPU memory");
}

}  // namespace sinklora
