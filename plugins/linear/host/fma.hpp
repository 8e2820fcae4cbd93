// Weights decoded to float32 and multiplied with fused multiply-adds: every format on AVX2, floats on AVX-512 without BF16.
#pragma once
#include "linear/host/rows.hpp"
#include "linear/host/small_floats.hpp"

namespace slipway::linear {

// Calls use(k, column tile, weights of 16 columns) for every input k of a block; weights as float32, in units of P's scale().
template <class Use>
void decode_block(Bf16, const std::byte* block, Use use) {
  for (int tile = 0; tile < 2; ++tile)
    for (int pair = 0; pair < 16; ++pair) {
      const auto [even, odd] = load_pairs(block + tile * 1024 + pair * 64);
      use(2 * pair, tile, even);
      use(2 * pair + 1, tile, odd);
    }
}

template <bool has_units, class Use>
void decode_block(E4m3<has_units>, const std::byte* block, Use use) {
  for (int tile = 0; tile < 2; ++tile)
    for (int k = 0; k < E4m3<has_units>::block_k; ++k) use(k, tile, e4m3(load_words(block + k / 4 * 128 + tile * 64), k % 4 * 8));
}

template <int group, class Use>
void decode_block(E2m1<group>, const std::byte* block, Use use) {
  using Weights = E2m1<group>;
  for (int tile = 0; tile < 2; ++tile)
    for (int k = 0; k < Weights::block_k; k += group) {
      const f32x16 scale = scale_of(Weights{}, block + k / group * 32 + tile * 16);
      for (int i = k; i < k + group; ++i)
        use(i, tile, e2m1(load_words(block + Weights::header_bytes + i / 4 * 64), i % 4 * 8 + tile * 4) * scale);
    }
}

#if !defined(__AVX512F__)
// Bits [shift, shift + bits) of each 32-bit lane of 64 bytes.
template <int bits>
f32x16 bit_field(const std::byte* at, int shift) {
  return to_floats(load_words(at) >> shift & ((1 << bits) - 1));
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

template <int group, bool zero_point, class Use>
void decode_block(Int4<group, zero_point>, const std::byte* block, Use use) {
  for (int tile = 0; tile < 2; ++tile) {
    const std::byte* multipliers = block + tile * 32;
    const f32x16 zero = rungs(zero_point ? to_floats(load_bytes(block + 64 + tile * 16)) : f32x16::splat(codes::int4_zero), multipliers);
    for (int k = 0; k < group; ++k) {
      const std::byte* quads = block + Int4<group, zero_point>::header_bytes + k / 4 * 64;
      use(k, tile, rungs(bit_field<4>(quads, (k % 4 ^ 1) * 8 + tile * 4), multipliers) - zero);
    }
  }
}
#endif

// `count` rows from `row` on against one panel.
template <class P, int count>
void multiply_rows(const FloatRows<P>& rows, int64_t row, const std::byte* panel, const Ahead<P>& ahead, const Call& call,
                   int64_t index, const Output<P>& output) {
  using Weights = typename P::Weights;
  f32x16 sums[count][2], totals[count][2];
  for (int r = 0; r < count; ++r) sums[r][0] = sums[r][1] = totals[r][0] = totals[r][1] = f32x16::splat(0);
  for (int b = 0; b < P::blocks; ++b) {
    prefetch<Weights::block_bytes>(ahead.block(b));
    decode_block(Weights{}, panel + int64_t{b} * Weights::block_bytes, [&](int k, int tile, f32x16 weights) {
      for (int r = 0; r < count; ++r)
        sums[r][tile] = fma(f32x16::splat(rows.row(row + r)[b * Weights::block_k + k]), weights, sums[r][tile]);
    });
    if (complete<P>((b + 1) * Weights::block_k))
      for (int tile = 0; tile < 2; ++tile)
        for (int r = 0; r < count; ++r) {
          totals[r][tile] = fma(sums[r][tile], scale<P>(call, index, tile, b * Weights::block_k), totals[r][tile]);
          sums[r][tile] = f32x16::splat(0);
        }
  }
  for (int r = 0; r < count; ++r) output(row + r, index, totals[r][0], totals[r][1]);
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
    int64_t row = 0;
    for (; row + at_once <= call.rows; row += at_once) multiply_rows<P, at_once>(rows, row, panel, ahead, call, index, output);
    for (; row < call.rows; ++row) multiply_rows<P, 1>(rows, row, panel, ahead, call, index, output);
  });
}

}  // namespace slipway::linear
