// The machine's own limits, in kernels of our own: what reads, and what multiplies, and nothing else.
#pragma once
#include "slipway/cuda/device.cuh"

namespace slipway::cuda::probe {

inline constexpr int threads = 512, ahead = 8;

// Reads inputs[0], `row_bytes` of it, once: each thread `ahead` times 16 bytes at a time.
inline void read(const Call& call) {
  const auto* data = reinterpret_cast<const Words<4>*>(call.inputs[0].data);
  const int64_t count = call.inputs[0].row_bytes / 16, stride = int64_t{gridDim.x} * threads;
  uint32_t folded = 0;
  for (int64_t first = int64_t{blockIdx.x} * threads + threadIdx.x; first < count; first += stride * ahead) {
    Words<4> words[ahead];
#pragma unroll
    for (int i = 0; i < ahead; ++i) words[i] = first + i * stride < count ? load_streaming(data + first + i * stride) : Words<4>{{0, 0, 0, 0}};
#pragma unroll
    for (int i = 0; i < 4 * ahead; ++i) folded ^= words[i / 4].words[i % 4];
  }
  if (folded == 0x12345678u) call.outputs[0].row<uint32_t>(0)[0] = folded;  // so that nothing of it can be left out
}

// `repeats` times four independent multiplications of 16 x 8 x 16 a warp.
template <int repeats> inline void multiply(const Call& call) {
  float sums[4][4] = {};
  const uint32_t a[4] = {threadIdx.x, 1, 2, 3}, b[2] = {blockIdx.x, 1};
  for (int i = 0; i < repeats; ++i)
#pragma unroll
    for (int j = 0; j < 4; ++j) mma_bf16(sums[j], a, b);
  float total = 0;
#pragma unroll
  for (int j = 0; j < 16; ++j) total += sums[j / 4][j % 4];
  if (total == 12345.0f) call.outputs[0].row<float>(0)[0] = total;
}

}  // namespace slipway::cuda::probe
