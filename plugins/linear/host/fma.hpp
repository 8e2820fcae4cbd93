// Weights decoded to float32 and multiplied with fused multiply-adds: every format on AVX2, bf16 on AVX-512 without BF16.
#pragma once
#include "linear/host/rows.hpp"

namespace slipway::linear {

// Calls use(k, column tile, weights of 16 columns) for every input k of a block; weights as float32, unscaled if integers.
template <class Use>
void decode_block(Bf16, const std::byte* block, Use use) {
  for (int tile = 0; tile < 2; ++tile)
    for (int pair = 0; pair < 16; ++pair) {
      const auto [even, odd] = load_pairs(block + tile * 1024 + pair * 64);
      use(2 * pair, tile, even);
      use(2 * pair + 1, tile, odd);
    }
}

#if !defined(__AVX512F__)
// Bits [shift, shift + bits) of each 32-bit lane of 64 bytes.
template <int bits>
f32x16 bit_field(const std::byte* at, int shift) {
  f32x16 out;
  for (int i = 0; i < 2; ++i) {
    const __m256i word = _mm256_srl_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(at) + i), _mm_cvtsi32_si128(shift));
    out.v[i] = _mm256_cvtepi32_ps(_mm256_and_si256(word, _mm256_set1_epi32((1 << bits) - 1)));
  }
  return out;
}

template <int block_k, class Use>
void decode_block(Int8<block_k>, const std::byte* block, Use use) {
  for (int tile = 0; tile < 2; ++tile)
    for (int k = 0; k < block_k; ++k)
      use(k, tile, bit_field<8>(block + (tile * block_k + k) / 4 * 64, k % 4 * 8) - f32x16::splat(Int8<block_k>::common_zero));
}

// The rungs (quantization/formats.py) of 16 codes with the multipliers at `multipliers`.
inline f32x16 rungs(f32x16 codes, const std::byte* multipliers) {
  f32x16 out;
  for (int i = 0; i < 2; ++i) {
    const __m256i m = _mm256_cvtepi16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(multipliers) + i));
    const __m256i product = _mm256_mullo_epi32(_mm256_cvtps_epi32(codes.v[i]), m);
    out.v[i] = _mm256_cvtepi32_ps(_mm256_srai_epi32(_mm256_add_epi32(product, _mm256_set1_epi32(64)), 7));
  }
  return out;
}

inline f32x16 load_bytes(const std::byte* at) {
  const auto eight = [](const std::byte* from) {
    return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from))));
  };
  return {{eight(at), eight(at + 8)}};
}

template <int group, bool zero_point, class Use>
void decode_block(Int4<group, zero_point>, const std::byte* block, Use use) {
  for (int tile = 0; tile < 2; ++tile) {
    const std::byte* multipliers = block + tile * 32;
    const f32x16 zero = rungs(zero_point ? load_bytes(block + 64 + tile * 16) : f32x16::splat(codes::int4_zero), multipliers);
    for (int k = 0; k < group; ++k) {
      const std::byte* quads = block + Int4<group, zero_point>::header_bytes + k / 4 * 64;
      use(k, tile, rungs(bit_field<4>(quads, (k % 4 ^ 1) * 8 + tile * 4), multipliers) - zero);
    }
  }
}
#endif

// `count` rows from `row` on against one panel.
template <class P, int count>
void multiply_rows(const FloatRows<P>& rows, int64_t row, const std::byte* panel, const Ahead<P>& ahead, const f32x16 (&scale)[2],
                   int64_t index, const Output<P>& output) {
  using Weights = typename P::Weights;
  f32x16 sums[count][2];
  for (auto& sum : sums) sum[0] = sum[1] = f32x16::splat(0);
  for (int b = 0; b < P::blocks; ++b) {
    prefetch<Weights::block_bytes>(ahead.block(b));
    decode_block(Weights{}, panel + int64_t{b} * Weights::block_bytes, [&](int k, int tile, f32x16 weights) {
      for (int r = 0; r < count; ++r)
        sums[r][tile] = fma(f32x16::splat(rows.row(row + r)[b * Weights::block_k + k]), weights, sums[r][tile]);
    });
  }
  for (int r = 0; r < count; ++r) output(row + r, index, sums[r][0] * scale[0], sums[r][1] * scale[1]);
}

template <class P>
void run_fma(const Call& call, const float* bias) {
  constexpr int at_once = 4;
  Stream<panel_chunk<P>> stream(call, P::panels);
  Ahead<P>::begin(P::panel(call, stream.first()));
  const FloatRows<P> rows = pack_rows<P, FloatRows<P>>(call);
  const Output<P> output(call, bias);
  stream.each([&](int64_t index, int64_t following) {
    const std::byte* panel = P::panel(call, index);
    const Ahead<P> ahead{panel, P::panel(call, following)};
    f32x16 scale[2] = {f32x16::splat(1), f32x16::splat(1)};
    if constexpr (P::Weights::integer) {
      const float* scales = P::scales(call, index);
      scale[0] = load(scales), scale[1] = load(scales + 16);
    }
    int64_t row = 0;
    for (; row + at_once <= call.rows; row += at_once) multiply_rows<P, at_once>(rows, row, panel, ahead, scale, index, output);
    for (; row < call.rows; ++row) multiply_rows<P, 1>(rows, row, panel, ahead, scale, index, output);
  });
}

}  // namespace slipway::linear
