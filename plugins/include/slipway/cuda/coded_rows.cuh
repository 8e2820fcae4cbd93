// Rows of activations as e4m3 codes, which cuBLASLt multiplies: in the order of the inputs of packed weights, 64 of them as [q][half][8], four
// neighbours as bytes.cuh says.
#pragma once
#include "slipway/cuda/bytes.cuh"

namespace slipway::cuda {

// Where the eight columns from 8 * eight on begin, and where one column lies.
inline constexpr int coded_eight(int eight) { return eight / 8 * 64 + eight % 4 * 16 + eight % 8 / 4 * 8; }
inline constexpr int coded_column(int column) { return coded_eight(column / 8) + column % 8 / 4 * 4 + byte_of(column % 4); }

// The largest of what a block's threads have, in every thread. of_warps: shared memory that nothing else is done with.
template <int threads> inline float block_largest(float largest, float (&of_warps)[threads / 32]) {
  largest = warp_reduce(largest, larger_or_nan);
  if (lane() == 0) of_warps[threadIdx.x / 32] = largest;
  __syncthreads();
  largest = of_warps[0];
#pragma unroll
  for (int warp = 1; warp < threads / 32; ++warp) largest = larger_or_nan(largest, of_warps[warp]);
  return largest;
}

}  // namespace slipway::cuda
