// From exact integer sums of fixed-point planes to float32: the same arithmetic whichever unit made the sums.
#pragma once
#include "linear/host/rows.hpp"

#if defined(__AVX512F__)
namespace slipway::linear {

inline f32x16 to_float(__m512i a) { return {_mm512_cvtepi32_ps(a)}; }

// int8: the two plane sums of a row and 16 columns, with the scales of the columns.
template <class P>
f32x16 finish_int8(const FixedRows<P>& rows, int64_t row, __m512i high, __m512i low, f32x16 scale) {
  high = _mm512_sub_epi32(high, _mm512_set1_epi32(rows.sums[row]));
  low = _mm512_sub_epi32(low, _mm512_set1_epi32(rows.sums[rows.padded + row]));
  return fma(to_float(high), f32x16::splat(256), to_float(low)) * (f32x16::splat(rows.scales[row]) * scale);
}

// int4: the scales and zero points of a group and 32 columns.
template <class Weights>
struct GroupHeader {
  f32x16 scale[2];
  __m512i zero[2];

  explicit GroupHeader(const std::byte* block) {
    for (int tile = 0; tile < 2; ++tile) {
      scale[tile] = {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(block + tile * 32)))};
      if constexpr (Weights::has_zeros)
        zero[tile] = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(block + 64 + tile * 16)));
    }
  }

  // sum + scale * (256 * high + low - zero * row_sum); at most 128 * 15 * 32639: exact in int32.
  f32x16 fold(int tile, __m512i high, __m512i low, int32_t row_sum, f32x16 sum) const {
    __m512i zeros = _mm512_set1_epi32(row_sum);
    if constexpr (Weights::has_zeros) zeros = _mm512_mullo_epi32(zero[tile], zeros);
    const __m512i whole = _mm512_sub_epi32(_mm512_add_epi32(_mm512_slli_epi32(high, 8), low), zeros);
    return fma(to_float(whole), scale[tile], sum);
  }
};

}  // namespace slipway::linear
#endif
