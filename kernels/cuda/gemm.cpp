#include "kernels/cuda/gemm.h"

#include <algorithm>
#include <bit>
#include <limits>

namespace sinklora::cuda {
namespace {

cudaDataType_t library_type(DType type) {
  if (type == DType::bf16) return CUDA_R_16BF;
  if (type == DType::f32) return CUDA_R_32F;
  fail_internal("a matrix product of {}", name_of(type));
}

// Bytes that the address is a multiple of, up to 256.
int alignment_of(const void* address) {
  return 1 << std::countr_zero(reinterpret_cast<uintptr_t>(address) | 256u);
}

// A single row may have any stride, yet the library wants at least a row's length.
int64_t stride_of(const Tensor& matrix) { return std::max(matrix.row_stride, matrix.row_size()); }

// The column-major view of a row-major matrix: its transpose.
cublasLtMatrixLayout_t make_layout(DType type, int64_t rows, int64_t columns, int64_t stride) {
  cublasLtMatrixLayout_t layout = nullptr;
  SINKLORA_CUDA(cublasLtMatrixLayoutCreate(&layout, library_type(type), static_cast<uint64_t>(columns),
                                           static_cast<uint64_t>(rows), stride));
  return layout;
}

struct DestroyLayout {
  void operator()(cublasLtMatrixLayout_t layout) const {
    static_cast<void>(cublasLtMatrixLayoutDestroy(layout));
  }
};
struct DestroyProduct {
  void operator()(cublasLtMatmulDesc_t product) const {
    static_cast<void>(cublasLtMatmulDescDestroy(product));
  }
};
struct DestroyPreference {
  void operator()(cublasLtMatmulPreference_t p) const {
    static_cast<void>(cublasLtMatmulPreferenceDestroy(p));
  }
};
using Layout = std::unique_ptr<std::remove_pointer_t<cublasLtMatrixLayout_t>, DestroyLayout>;

}  // namespace

struct Gemm::Plan {
  std::unique_ptr<std::remove_pointer_t<cublasLtMatmulDesc_t>, DestroyProduct> product;
  Layout a, b, d;
  cublasLtMatmulHeuristicResult_t choice{};
  bool tiled = false;  // the library has nothing for this shape
};

Gemm::Gemm(cudaStream_t stream) : stream_(stream) {
  SINKLORA_CUDA(cublasLtCreate(&handle_));
  int device = 0, major = 0;
  SINKLORA_CUDA(cudaGetDevice(&device));
  SINKLORA_CUDA(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device));
  workspace_bytes_ = int64_t{major >= 9 ? 32 : 4} << 20;  // what the library's manual asks for
  workspace_.reset(allocate_device(workspace_bytes_));
  // As all scratch memory: NaNs, so that reading what was not written shows.
  SINKLORA_CUDA(cudaMemsetAsync(workspace_.get(), 0xff, static_cast<size_t>(workspace_bytes_), stream_));
}

Gemm::~Gemm() {
  plans_.clear();
  if (handle_) static_cast<void>(cublasLtDestroy(handle_));
}

// The library computes column-major products: D^T = op(B)^T op(A)^T, so its first operand is our B.
Gemm::Plan& Gemm::plan(const Key& key) {
  std::unique_ptr<Plan>& cached = plans_[key];
  if (cached) return *cached;
  auto made = std::make_unique<Plan>();
  cublasLtMatmulDesc_t product = nullptr;
  SINKLORA_CUDA(cublasLtMatmulDescCreate(&product, CUBLAS_COMPUTE_32F, CUDA_R_32F));
  made->product.reset(product);
  const auto set = [&](cublasLtMatmulDescAttributes_t attribute, bool is_transposed) {
    const cublasOperation_t operation = is_transposed ? CUBLAS_OP_T : CUBLAS_OP_N;
    SINKLORA_CUDA(cublasLtMatmulDescSetAttribute(product, attribute, &operation, sizeof operation));
  };
  set(CUBLASLT_MATMUL_DESC_TRANSA, key.transposed_b);
  set(CUBLASLT_MATMUL_DESC_TRANSB, key.transposed_a);
  const auto stored = [&](bool is_transposed, int64_t rows, int64_t columns, int64_t stride) {
    return is_transposed ? make_layout(key.in, columns, rows, stride)
                         : make_layout(key.in, rows, columns, stride);
  };
  made->a.reset(stored(key.transposed_a, key.m, key.k, key.stride_a));
  made->b.reset(stored(key.transposed_b, key.k, key.n, key.stride_b));
  made->d.reset(make_layout(key.out, key.m, key.n, key.stride_d));

  cublasLtMatmulPreference_t created = nullptr;
  SINKLORA_CUDA(cublasLtMatmulPreferenceCreate(&created));
  const std::unique_ptr<std::remove_pointer_t<cublasLtMatmulPreference_t>, DestroyPreference> preference(
      created);
  const auto prefer = [&](cublasLtMatmulPreferenceAttributes_t attribute, auto value) {
    SINKLORA_CUDA(cublasLtMatmulPreferenceSetAttribute(created, attribute, &value, sizeof value));
  };
  prefer(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, static_cast<uint64_t>(workspace_bytes_));
  prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, static_cast<uint32_t>(key.alignment_b));
  prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, static_cast<uint32_t>(key.alignment_a));
  prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, static_cast<uint32_t>(key.alignment_d));
  prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, static_cast<uint32_t>(key.alignment_d));
  // Parts of a split sum are added in f32, in the workspace, in a fixed order.
  prefer(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
         static_cast<uint32_t>(CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE));
  int found = 0;
  const cublasStatus_t status =
      cublasLtMatmulAlgoGetHeuristic(handle_, product, made->b.get(), made->a.get(), made->d.get(),
                                     made->d.get(), created, 1, &made->choice, &found);
  if (status != CUBLAS_STATUS_NOT_SUPPORTED) check(status, "cublasLtMatmulAlgoGetHeuristic");
  made->tiled = status == CUBLAS_STATUS_NOT_SUPPORTED || found == 0;
  cached = std::move(made);
  return *cached;
}

void Gemm::operator()(const Tensor& d, const Operand& a, const Operand& b, double alpha, bool accumulate) {
  const int64_t m = d.rows(), n = d.row_size(), k = a.columns();
  if (a.rows() != m || b.columns() != n || b.rows() != k || a.matrix.dtype != b.matrix.dtype)
    fail_internal("a matrix product of {}{} and {}{} into {}", describe(a.matrix), a.transposed ? "^T" : "",
                  describe(b.matrix), b.transposed ? "^T" : "", describe(d));
  if (m == 0 || n == 0) return;
  // Kernels of the library count elements in 32 bits: tall matrices go through in parts.
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max();
  const int64_t across = a.transposed ? k : m;  // the rows of A in memory
  const int64_t beside = !a.transposed ? d.row_stride * m : b.transposed ? 0 : b.matrix.row_stride * k;
  if (across > 1 && std::max(a.matrix.row_stride * across, beside) > kMost) {
    const int64_t half = std::max<int64_t>(1, across / 2 / 128 * 128), rest = across - half;
    const auto part = [&](int64_t begin, int64_t count, bool add) {
      const Operand rows{a.matrix.row_slice(begin, count), a.transposed};
      if (!a.transposed) return (*this)(d.row_slice(begin, count), rows, b, alpha, add);
      const Operand inner{
          b.transposed ? b.matrix.column_slice(begin, count) : b.matrix.row_slice(begin, count),
          b.transposed};
      (*this)(d, rows, inner, alpha, add);
    };
    part(0, half, accumulate);
    return part(half, rest, a.transposed || accumulate);
  }
  const Key key{m,
                n,
                k,
                stride_of(a.matrix),
                stride_of(b.matrix),
                stride_of(d),
                a.transposed,
                b.transposed,
                accumulate,
                a.matrix.dtype,
                d.dtype,
                alignment_of(a.matrix.data),
                alignment_of(b.matrix.data),
                alignment_of(d.data)};
  Plan& chosen = plan(key);
  const auto factor = static_cast<float>(alpha);
  if (chosen.tiled) return run_tiled(key, d, a, b, factor);
  const float beta = accumulate ? 1 : 0;
  SINKLORA_CUDA(cublasLtMatmul(handle_, chosen.product.get(), &factor, b.matrix.data, chosen.b.get(),
                               a.matrix.data, chosen.a.get(), &beta, d.data, chosen.d.get(), d.data,
                               chosen.d.get(), &chosen.choice.algo, workspace_.get(),
                               static_cast<size_t>(workspace_bytes_), stream_));
}

void Gemm::run_tiled(const Key& key, const Tensor& d, const Operand& a, const Operand& b, float alpha) {
  const int64_t one = 1;
  launch_tiled_product(
      {a.matrix.data, b.matrix.data, d.data, key.m, key.n, key.k, a.transposed ? one : key.stride_a,
       a.transposed ? key.stride_a : one, b.transposed ? one : key.stride_b,
       b.transposed ? key.stride_b : one, key.stride_d, alpha, key.accumulate},
      key.in, key.out, stream_);
}

std::string Gemm::describe_plans() const {
  std::string text;
  for (const auto& [key, plan] : plans_) {
    int id = -1, splits = 0, tile = 0, stages = 0;
    const auto get = [&](cublasLtMatmulAlgoConfigAttributes_t attribute, int* value) {
      size_t written = 0;
      SINKLORA_CUDA(cublasLtMatmulAlgoConfigGetAttribute(&plan->choice.algo, attribute, value, sizeof *value,
                                                         &written));
    };
    if (!plan->tiled) {
      get(CUBLASLT_ALGO_CONFIG_ID, &id);
      get(CUBLASLT_ALGO_CONFIG_SPLITK_NUM, &splits);
      get(CUBLASLT_ALGO_CONFIG_TILE_ID, &tile);
      get(CUBLASLT_ALGO_CONFIG_STAGES_ID, &stages);
    }
    text += fmt::format(
        "{} {} -> {}: {} x {} x {}, strides {} {} {}, {}{}{} algorithm {} tile {} stages {} splits {}\n",
        plan->tiled ? "own kernel," : "cuBLASLt,", name_of(key.in), name_of(key.out), key.m, key.n, key.k,
        key.stride_a, key.stride_b, key.stride_d, key.transposed_a ? "A^T" : "A",
        key.transposed_b ? " B^T" : " B", key.accumulate ? " +=" : "", id, tile, stages, splits);
  }
  return text;
}

}  // namespace sinklora::cuda
