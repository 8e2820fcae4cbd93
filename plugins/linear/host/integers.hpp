// From exact integer sums of fixed-point planes to float32: the same arithmetic whichever unit made the sums.
#pragma once
#include "linear/host/rows.hpp"

#if defined(__AVX512F__)
namespace slipway::linear {

inline f32x16 to_float(__m512i a) { return {_mm512_cvtepi32_ps(a)}; }

// The two plane sums of a row and 16 columns, with the scales of the columns.
template <class P>
f32x16 finished(const FixedRows<P>& rows, int64_t row, __m512i high, __m512i low, f32x16 scale) {
  high = _mm512_sub_epi32(high, _mm512_set1_epi32(rows.sums[row]));
  low = _mm512_sub_epi32(low, _mm512_set1_epi32(rows.sums[rows.padded + row]));
  return fma(to_float(high), f32x16::splat(256), to_float(low)) * (f32x16::splat(rows.scales[row]) * scale);
}

}  // namespace slipway::linear
#endif
