// Rows of activations as cuBLASLt multiplies them with nvfp4 weights: e2m1 codes, an e4m3 scale for 16 of them, and one for the row.
// Mirrors plugins/linear/pack_scaled_groups.py.
#pragma once
#include "linear/cuda/around_matmul.cuh"

namespace slipway::cuda::linear {

inline constexpr int scaled_group = 16;

struct Fp4Code {
  static constexpr float largest = codes::e2m1(7);
  // To the nearest, ties to even; beyond the largest as that.
  static uint32_t encode(float x) {
    const uint32_t sign = as_bits(x) >> 28 & 8;
    const float size = min(fabsf(x), largest);
    if (size < 1) return sign | (as_bits(size + 0x1p22f) - as_bits(0x1p22f));  // steps of a half
    return sign | ((as_bits(size) + 0x1fffffu + (as_bits(size) >> 22 & 1)) >> 22) - (126u << 1);
  }
};

struct ScaledFp4 {
  static constexpr float largest = Fp4Code::largest * Fp8Code::largest;
};

// Where the scale of a row's group lies: pieces of 128 rows and four groups, in which every 32nd row is a neighbour.
template <int chunks> inline int64_t scale_at(int row, int group) {
  return (int64_t{row / 128} * chunks + group / 4) * 512 + row % 32 * 16 + row % 128 / 32 * 4 + group % 4;
}

// Blocks along x have a row each. Scales of groups lie behind the records of all rows.
template <class P, class R> inline void quantize_inputs_in_groups(const Call& call) {
  const int row = static_cast<int>(blockIdx.x);
  if (row >= call.rows()) return;
  const auto* x = call.inputs[0].row<const typename P::In>(row);
  const auto each_group = [&](auto body) {
    for (int group = static_cast<int>(threadIdx.x); group < P::chunks * chunk_columns / scaled_group; group += around_threads) {
      float values[scaled_group];
#pragma unroll
      for (int half = 0; half < 2; ++half) unpack(load_inputs<P>(x, scaled_group * group + 8 * half), values + 8 * half);
      float largest = 0;
#pragma unroll
      for (const float value : values) largest = larger_or_nan(largest, fabsf(value));
      body(group, values, largest);
    }
  };
  float largest = 0;
  each_group([&](int, const float (&)[scaled_group], float of_group) { largest = larger_or_nan(largest, of_group); });
  largest = block_largest<around_threads>(largest, shared<CodesShared>().largest);
  const R record(call, row);
  if (threadIdx.x == 0) *record.scale() = scale_of_codes<ScaledFp4>(largest) / fp4_scale;
  const float inverse = codes_per_unit<ScaledFp4>(largest);
  std::byte* scales = R::behind_rows(call);
  each_group([&](int group, const float (&values)[scaled_group], float of_group) {
    const uint32_t scale = Fp8Code::encode(of_group * inverse / Fp4Code::largest);
    const float unit = Fp8Code::value(scale), per_unit = unit > 0 ? inverse / unit : 0;
    Words<2> codes{};
#pragma unroll
    for (int i = 0; i < scaled_group; ++i) codes.words[i / 8] |= Fp4Code::encode(values[i] * per_unit) << i % 8 * 4;
    *reinterpret_cast<Words<2>*>(record.begin + scaled_group / 2 * group) = codes;
    scales[scale_at<P::chunks>(row, group)] = static_cast<std::byte>(scale);
  });
}

}  // namespace slipway::cuda::linear
