// Codes of small floats as float32, sixteen columns of an input at a time, or as pairs of bf16: exact, tables made of what codes stand for.
#pragma once
#include <array>

#include "linear/host/problem.hpp"
#include "slipway/unroll.hpp"

namespace slipway::linear {

using Words = uint32_t __attribute__((vector_size(64)));  // one a column
using Floats = float __attribute__((vector_size(64)));
#if !defined(__AVX512F__)
struct Halves {
  __m256i v[2];
};
#endif

inline Words load_words(const std::byte* at) {
  Words words;
  std::memcpy(&words, at, sizeof words);
  return words;
}
inline Words load_bytes(const std::byte* at) {  // gcc 12 converts vectors of bytes in pieces
#if defined(__AVX512F__)
  return __builtin_bit_cast(Words, _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(at))));
#else
  const auto eight = [](const std::byte* from) { return _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from))); };
  return __builtin_bit_cast(Words, Halves{{eight(at), eight(at + 8)}});
#endif
}
inline f32x16 to_floats(Words values) {  // below 2^31
  using Integers = int32_t __attribute__((vector_size(64)));
  return __builtin_bit_cast(f32x16, __builtin_convertvector(__builtin_bit_cast(Integers, values), Floats));
}
inline f32x16 as_floats(Words bits) { return __builtin_bit_cast(f32x16, bits); }

inline Words smaller(Words a, Words b) {
#if defined(__AVX512F__)
  return __builtin_bit_cast(Words, _mm512_min_epu32(__builtin_bit_cast(__m512i, a), __builtin_bit_cast(__m512i, b)));
#else
  const auto left = __builtin_bit_cast(Halves, a), right = __builtin_bit_cast(Halves, b);
  return __builtin_bit_cast(Words, Halves{{_mm256_min_epu32(left.v[0], right.v[0]), _mm256_min_epu32(left.v[1], right.v[1])}});
#endif
}

// e4m3 in bits [shift, shift + 8): the smaller of what the bits are as a normal number and as a subnormal one, which is a normal number of the
// exponent above without its leading one.
inline constexpr uint32_t e4m3_rebias = 120u << 23, e4m3_one_more = 121u << 23;
inline f32x16 e4m3(Words words, int shift) {
  const Words code = words >> shift, bits = (code & 0x7f) << 20;
  const Floats subnormal = __builtin_bit_cast(Floats, bits + e4m3_one_more) - 0x1p-6f;
  return as_floats(smaller(bits + e4m3_rebias, __builtin_bit_cast(Words, subnormal)) | (code & 0x80) << 24);
}
static_assert(codes::all(codes::e4m3_nan, [](uint32_t code) {
  const auto from = [&](uint32_t rebias) { return codes::from_bits((code << 20) + rebias); };
  return std::min(from(e4m3_rebias), from(e4m3_one_more) - 0x1p-6f) == codes::e4m3(code);
}));

// e2m1 in bits [shift, shift + 4).
inline f32x16 e2m1(Words words, int shift) {
  static constexpr auto values = [] {
    std::array<float, 16> all{};
    for (uint32_t code = 0; code < 16; ++code) all[code] = codes::e2m1(code);
    return all;
  }();
  const Words code = words >> shift;
#if defined(__AVX512F__)
  return {_mm512_permutexvar_ps(__builtin_bit_cast(__m512i, code), _mm512_loadu_ps(values.data()))};
#else
  Halves size = __builtin_bit_cast(Halves, code);
  for (auto& half : size.v) half = _mm256_castps_si256(_mm256_permutevar8x32_ps(_mm256_loadu_ps(values.data()), half));
  return as_floats(__builtin_bit_cast(Words, size) | (code & 8) << 28);
#endif
}

// Scales of 16 columns, a byte each. Of nvfp4: five bits of exponent, which is biased by ten, and three of fraction, so that e4m3's subnormals are
// normal; no zero: codes of such groups are. Of mxfp4: e8m0, but 2^-127 counts as 0.
inline f32x16 scale_of(Nvfp4, const std::byte* at) { return as_floats((load_bytes(at) << 20) + (117u << 23)); }
inline f32x16 scale_of(Mxfp4, const std::byte* at) { return as_floats(load_bytes(at) << 23); }
static_assert(codes::all(256, [](uint32_t code) {
  return codes::from_bits((code << 20) + (117u << 23)) == codes::power_of_two(static_cast<int>(code / 8) - 10) * (1 + static_cast<float>(code % 8) / 8);
}));
static_assert(codes::all(255, [](uint32_t code) { return !code || codes::from_bits(code << 23) == codes::e8m0(code); }));

#if defined(__AVX512VBMI__)

// Even inputs and odd ones, which bf16 holds exactly, as pairs.
inline __m512i paired(f32x16 even, f32x16 odd) {
  const __m512i high_halves = _mm512_set4_epi32(0x0f0e0f0e, 0x0b0a0b0a, 0x07060706, 0x03020302);
  return _mm512_mask_shuffle_epi8(_mm512_castps_si512(odd.v), 0x3333333333333333u, _mm512_castps_si512(even.v), high_halves);
}

// Sixteen columns of four inputs of e4m3 to the pairs of the first two and of the last two.
struct QuadPairs {
  __m512i first, second;
};
inline QuadPairs e4m3_pairs(const std::byte* quad) {
  alignas(64) static constexpr auto bytes = [] {
    std::array<std::array<uint8_t, 128>, 2> all{};
    for (uint32_t code = 0; code < 128; ++code)
      for (int i = 0; i < 2; ++i) all[i][code] = static_cast<uint8_t>(codes::to_bf16(codes::e4m3(code)) >> (8 * i));
    return all;
  }();
  alignas(64) static constexpr auto order = [] {  // of four columns' four inputs: first the first two inputs of each
    std::array<uint8_t, 64> all{};
    for (int i = 0; i < 64; ++i) all[i] = static_cast<uint8_t>(i / 16 * 16 + i % 8 / 2 * 4 + i / 8 % 2 * 2 + i % 2);
    return all;
  }();
  const __m512i codes = _mm512_permutexvar_epi8(_mm512_load_si512(order.data()), _mm512_load_si512(quad));
  const auto looked_up = [&](const auto& table) { return _mm512_permutex2var_epi8(_mm512_load_si512(table.data()), codes, _mm512_load_si512(table.data() + 64)); };
  constexpr int with_masked_first = 0xec;  // the second operand's bits, and the first's where the third has ones
  const __m512i low = looked_up(bytes[0]);
  const __m512i high = _mm512_ternarylogic_epi32(codes, looked_up(bytes[1]), _mm512_set1_epi8(static_cast<char>(0x80)), with_masked_first);
  return {_mm512_unpacklo_epi8(low, high), _mm512_unpackhi_epi8(low, high)};
}

#endif

}  // namespace slipway::linear
