// The online softmax of a warp's 16 queries, its numbers laid out in the lanes as mma() (tensor_core.cuh) and
// wgmma leave them: a lane has rows lane / 4 and lane / 4 + 8, of every 8 columns the two from 2 (lane % 4)
// on.
#pragma once

#include <cmath>

#include "kernels/cuda/attention_tiles.cuh"
#include "kernels/cuda/tensor_core.cuh"

namespace sinklora::cuda {

template <int D>
struct Accumulator {
  float out[D / 8][4];
  float maximum[2];  // of raw scores, of rows lane / 4 and lane / 4 + 8 of the warp's 16
  float sum[2];      // this lane's part
};

// Scores become weights exp(score - reference). Returns whether the outputs so far must be multiplied by
// `factor`. `bounds`: of the warp's 16 rows when the tile needs a mask, else null.
template <int KEYS, int D>
__device__ __forceinline__ bool take_softmax(float (&score)[KEYS / 8][4], Accumulator<D>& acc,
                                             float (&factor)[2], const RowBounds* bounds, int first_key,
                                             float scale_log2, int lane) {
  bool raise = false;
  float top[2], reference[2];
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    if (bounds != nullptr) {
      const RowBounds keys = bounds[r * 8 + lane / 4];
#pragma unroll
      for (int n = 0; n < KEYS / 8; ++n)
#pragma unroll
        for (int c = 0; c < 2; ++c)
          if (!keys.sees(first_key + n * 8 + 2 * (lane & 3) + c)) score[n][2 * r + c] = -INFINITY;
    }
    float most = -INFINITY;
#pragma unroll
    for (int n = 0; n < KEYS / 8; ++n) most = fmaxf(most, fmaxf(score[n][2 * r], score[n][2 * r + 1]));
    most = fmaxf(most, __shfl_xor_sync(~0u, most, 1));
    most = fmaxf(most, __shfl_xor_sync(~0u, most, 2));
    top[r] = most;
    raise |= (most - acc.maximum[r]) * scale_log2 > 8.0f;  // -inf - -inf is NaN: no
  }
  raise = __any_sync(~0u, raise);
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    if (raise) {
      const float most = fmaxf(acc.maximum[r], top[r]);
      factor[r] = most == -INFINITY ? 1.0f : fast_exp2((acc.maximum[r] - most) * scale_log2);
      acc.maximum[r] = most;
      acc.sum[r] *= factor[r];
    }
    reference[r] = acc.maximum[r] == -INFINITY ? 0.0f : acc.maximum[r] * scale_log2;
  }
#pragma unroll
  for (int n = 0; n < KEYS / 8; ++n)
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      score[n][c] = fast_exp2(fmaf(score[n][c], scale_log2, -reference[c >> 1]));
      acc.sum[c >> 1] += score[n][c];
    }
  return raise;
}

template <int D>
__device__ __forceinline__ void rescale(float (&out)[D / 8][4], const float (&factor)[2]) {
#pragma unroll
  for (int n = 0; n < D / 8; ++n)
#pragma unroll
    for (int c = 0; c < 4; ++c) out[n][c] *= factor[c >> 1];
}

}  // namespace sinklora::cuda
