// int4 codes to the int8 weights they stand for: rungs of their group's ladder (quantization/formats.py), 128 added.
#pragma once
#include "linear/host/problem.hpp"

namespace slipway::linear {

#if defined(__AVX512BW__)

// The ladders of a block's 16 columns of a tile.
template <class Weights, int tile>
class Ladder {
 public:
  explicit Ladder(const std::byte* block) {
    const __m512i m = _mm512_cvtepi16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(block + tile * 32)));
    multiplier_ = _mm512_or_si512(_mm512_slli_epi32(m, 16), _mm512_and_si512(m, _mm512_set1_epi32(0xffff)));
    twice_ = _mm512_add_epi16(multiplier_, multiplier_);
    __m512i zero = _mm512_set1_epi32(codes::int4_zero);
    if constexpr (Weights::has_zeros)
      zero = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(block + 64 + tile * 16)));
    const __m512i rung = _mm512_srai_epi32(_mm512_add_epi32(_mm512_mullo_epi32(zero, m), _mm512_set1_epi32(64)), 7);
    const __m512i first_byte = _mm512_set4_epi32(0x0c0c0c0c, 0x08080808, 0x04040404, 0);
    start_ = _mm512_shuffle_epi8(_mm512_sub_epi32(_mm512_set1_epi32(Weights::common_zero), rung), first_byte);
  }

  // 16 columns x 4 inputs of u8, from the nibbles of both tiles, where pairs of inputs lie swapped: round(code * m / 128) is the
  // high byte of code * 2m + 128 for a code in a low byte, and for one in a high byte the rounded high product with m.
  __m512i weights(__m512i nibbles) const {
    if constexpr (tile == 1) nibbles = _mm512_srli_epi16(nibbles, 4);
    const __m512i in_high = _mm512_mullo_epi16(_mm512_and_si512(nibbles, _mm512_set1_epi16(0x000f)), twice_);
    const __m512i in_low = _mm512_mulhrs_epi16(_mm512_and_si512(nibbles, _mm512_set1_epi16(0x0f00)), multiplier_);
    constexpr int select = 0xd8;  // bits of the second operand where the third has ones, else of the first
    const __m512i rungs = _mm512_ternarylogic_epi32(in_low, _mm512_add_epi16(in_high, _mm512_set1_epi16(128)),
                                                    _mm512_set1_epi16(static_cast<int16_t>(0xff00)), select);
    return _mm512_add_epi8(rungs, start_);
  }

 private:
  __m512i multiplier_, twice_, start_;
};

#endif

}  // namespace slipway::linear
