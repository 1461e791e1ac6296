// Matrix products on cuBLASLt: row-major, any strides, bf16 or f32 in, f32 accumulation (true fp32 for f32
// inputs).
#pragma once

#include <compare>
#include <map>
#include <memory>
#include <string>

#include "kernels/cuda/memory.h"

namespace sinklora::cuda {

struct Operand {
  Tensor matrix;
  bool transposed = false;
  int64_t rows() const { return transposed ? matrix.row_size() : matrix.rows(); }
  int64_t columns() const { return transposed ? matrix.rows() : matrix.row_size(); }
};
inline Operand plain(const Tensor& matrix) { return {matrix, false}; }
inline Operand transposed(const Tensor& matrix) { return {matrix, true}; }

class Gemm {
 public:
  explicit Gemm(cudaStream_t stream);
  ~Gemm();
  Gemm(const Gemm&) = delete;
  Gemm& operator=(const Gemm&) = delete;

  // D = alpha A B, added into D when `accumulate`. A and B have one type; D that one or f32.
  void operator()(const Tensor& d, const Operand& a, const Operand& b, double alpha = 1,
                  bool accumulate = false);

  // One line per plan: shape, types, strides, algorithm. For logs: which kernels a run used.
  std::string describe_plans() const;
  int64_t workspace_bytes() const { return workspace_bytes_; }

 private:
  // Everything that the choice of an algorithm may depend on; equal keys give equal algorithms and equal
  // bits.
  struct Key {
    int64_t m, n, k, stride_a, stride_b, stride_d;
    bool transposed_a, transposed_b, accumulate;
    DType in, out;
    int alignment_a, alignment_b, alignment_d;  // bytes, up to 256
    auto operator<=>(const Key&) const = default;
  };
  struct Plan;
  Plan& plan(const Key& key);
  void run_tiled(const Key& key, const Tensor& d, const Operand& a, const Operand& b, float alpha);

  cudaStream_t stream_;
  cublasLtHandle_t handle_ = nullptr;
  DeviceMemory workspace_;
  int64_t workspace_bytes_ = 0;
  std::map<Key, std::unique_ptr<Plan>> plans_;
};

// The product for the rare shapes that cuBLASLt has no kernel for (gemm_tiled.cu).
struct TiledProduct {
  const void *a, *b;
  void* d;
  int64_t m, n, k;
  int64_t a_row, a_column, b_row, b_column, d_row;  // strides in elements
  float alpha;
  bool accumulate;
};
void launch_tiled_product(const TiledProduct& product, DType in, DType out, cudaStream_t stream);

}  // namespace sinklora::cuda
