// 16-bit fixed point in two planes of bytes, 256 * high + low: what integer dot products multiply exactly.
#pragma once
#include "slipway/simd.hpp"

#if defined(__AVX512F__)
namespace slipway {

inline constexpr float most_fixed = 32639;  // 256 * 127 + 127

// Low bytes of 32-bit lanes.
struct Planes {
  __m512i high, low;
};

// The lanes, at most `most_fixed` from 0, to the nearest; high and low from -128 to 127.
inline Planes to_planes(f32x16 a) {
  const __m512i value = _mm512_cvtps_epi32(a.v);
  const __m512i high = _mm512_srai_epi32(_mm512_add_epi32(value, _mm512_set1_epi32(128)), 8);
  return {high, _mm512_sub_epi32(value, _mm512_slli_epi32(high, 8))};
}

// Sums of the planes' products, taken together.
inline f32x16 from_planes(__m512i high, __m512i low) {
  return {_mm512_fmadd_ps(_mm512_cvtepi32_ps(high), _mm512_set1_ps(256), _mm512_cvtepi32_ps(low))};
}

}  // namespace slipway
#endif
