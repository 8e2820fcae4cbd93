// Groups of columns scaled to a root mean square of one: a whole row, or each head of it. A block has one group.
#pragma once
#include "slipway/cuda/coded_rows.cuh"

namespace slipway::cuda::rms_norm {

template <int threads> struct Shared {
  float sums[threads / 32], largest[threads / 32];
};

// The sum over a block, in every thread.
template <int threads> inline float block_sum(float x) {
  x = warp_sum(x);
  if constexpr (threads == 32) return x;
  auto& sums = shared<Shared<threads>>().sums;
  if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = x;
  __syncthreads();
  float total = 0;
  for (int warp = 0; warp < threads / 32; ++warp) total += sums[warp];
  return total;
}

struct Codes {};  // of e4m3, and behind those of a row their scale

// Residual = void: the norm of x alone. Else outputs are the norm of the sum, and the sum in float32. weight: [group], or null.
template <class In, class Residual, class Out, int group, int threads> inline void run(const Call& call, const float* weight, float eps) {
  constexpr bool adds = !is_same<Residual, void>;
  constexpr int each = (group + threads - 1) / threads;
  const int row = static_cast<int>(blockIdx.x), first = static_cast<int>(blockIdx.y) * group;
  if (row >= call.rows()) return;
  const In* x = call.inputs[0].row<In>(row) + first;
  float values[each], squares = 0;
#pragma unroll
  for (int i = 0; i < each; ++i) {
    const int column = i * threads + static_cast<int>(threadIdx.x);
    values[i] = column < group ? to_float(x[column]) : 0;
    if constexpr (adds)
      if (column < group) {
        values[i] += to_float(call.inputs[1].row<Residual>(row)[first + column]);
        call.outputs[1].row<float>(row)[first + column] = values[i];
      }
    squares += values[i] * values[i];
  }
  const float scale = inverse_sqrt(block_sum<threads>(squares) / group + eps);
  const auto normed = [&](int i, int column) { return values[i] * scale * (weight ? weight[column] : 1); };
  if constexpr (is_same<Out, Codes>) {
    float largest = 0;
#pragma unroll
    for (int i = 0; i < each; ++i) {
      const int column = i * threads + static_cast<int>(threadIdx.x);
      values[i] = column < group ? normed(i, column) : 0;
      largest = larger_or_nan(largest, fabsf(values[i]));
    }
    largest = block_largest<threads>(largest, shared<Shared<threads>>().largest);
    const float inverse = codes_per_unit<Fp8Code>(largest);
    auto* codes = call.outputs[0].row<uint8_t>(row);
    if (threadIdx.x == 0) *reinterpret_cast<float*>(codes + group) = scale_of_codes<Fp8Code>(largest);
#pragma unroll
    for (int i = 0; i < each; ++i) {
      const int column = i * threads + static_cast<int>(threadIdx.x);
      if (column < group) codes[coded_column(column)] = static_cast<uint8_t>(Fp8Code::encode(values[i] * inverse));
    }
  } else {
    Out* out = call.outputs[0].row<Out>(row) + first;
#pragma unroll
    for (int i = 0; i < each; ++i) {
      const int column = i * threads + static_cast<int>(threadIdx.x);
      if (column < group) store(out + column, normed(i, column));
    }
  }
}

}  // namespace slipway::cuda::rms_norm
