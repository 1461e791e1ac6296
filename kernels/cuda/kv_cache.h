// What the ops of a KV cache share.
#pragma once

#include <cuda_runtime.h>

#include "kernels/ops.h"

namespace sinklora::cuda {

void expect_cache(const KvCacheView& cache, const Tensor& k, const Tensor& v, const Tensor& new_mass,
                  DType activation, int64_t kv_heads);
// `keys`: as many angles are needed where the cache has ranks.
void expect_cached_attention(const Tensor& out, const Tensor& lse, const Tensor& q, const Tensor& k,
                             const KvCacheView& cache, const Tensor& cosines, const Tensor& sines,
                             DType activation, int64_t head_dim, int64_t keys);

// The second pass of a chunk of bf16 with heads of 64 or 128 (attention_mass.cu). q [n, Hq D] and its lse
// [Hq, n]; k [count + n, Hkv D]: of the cache's tokens, then of the chunk's. Adds to mass [Hkv, >= count] and
// writes new_mass [Hkv, n].
void add_mass(const Tensor& mass, const Tensor& new_mass, const Tensor& q, const Tensor& k, const Tensor& lse,
              int64_t count, int64_t head_dim, cudaStream_t stream);

}  // namespace sinklora::cuda
