// Sixteen float32 lanes: one AVX-512 register, or two of AVX2. Rows of float and bf16 in memory read and write as such.
#pragma once
#include <immintrin.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

namespace slipway {

struct bf16 {
  uint16_t bits;
};

inline constexpr int lanes = 16;

// Ask for the line at `at`. Not by the builtin: gcc takes a function of nothing but those for one without effect, and drops it.
inline void prefetch_line(const void* at) { asm volatile("prefetcht0 %0" : : "m"(*static_cast<const std::byte*>(at))); }
inline void prefetch_line_to_l2(const void* at) { asm volatile("prefetcht1 %0" : : "m"(*static_cast<const std::byte*>(at))); }
inline void prefetch_line_to_write(const void* at) { asm volatile("prefetchw %0" : : "m"(*static_cast<const std::byte*>(at))); }

#if defined(__AVX512F__)

struct f32x16 {
  __m512 v;
  static f32x16 splat(float x) { return {_mm512_set1_ps(x)}; }
};

inline f32x16 operator+(f32x16 a, f32x16 b) { return {_mm512_add_ps(a.v, b.v)}; }
inline f32x16 operator-(f32x16 a, f32x16 b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline f32x16 operator*(f32x16 a, f32x16 b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline f32x16 operator/(f32x16 a, f32x16 b) { return {_mm512_div_ps(a.v, b.v)}; }
inline f32x16 max(f32x16 a, f32x16 b) { return {_mm512_max_ps(a.v, b.v)}; }
inline f32x16 fma(f32x16 a, f32x16 b, f32x16 c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
inline f32x16 abs(f32x16 a) { return {_mm512_abs_ps(a.v)}; }
inline float reduce_add(f32x16 a) { return _mm512_reduce_add_ps(a.v); }
inline float reduce_max(f32x16 a) { return _mm512_reduce_max_ps(a.v); }

// The larger of lanes from 0 on; what is not a number is larger still.
inline f32x16 max_or_nan(f32x16 a, f32x16 b) {
  return {_mm512_castsi512_ps(_mm512_max_epu32(_mm512_castps_si512(a.v), _mm512_castps_si512(b.v)))};
}
inline uint32_t reduce_max_bits(f32x16 a) { return _mm512_reduce_max_epu32(_mm512_castps_si512(a.v)); }

inline f32x16 load(const float* at) { return {_mm512_loadu_ps(at)}; }
inline f32x16 load(const bf16* at) {
  const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(at)));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(wide, 16))};
}
inline void store(float* at, f32x16 a) { _mm512_storeu_ps(at, a.v); }
inline void store_around_cache(float* at, f32x16 a) { _mm512_stream_ps(at, a.v); }  // `at` aligned; an sfence makes it visible
inline __m128i to_int8(f32x16 a) { return _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(a.v)); }  // to the nearest

// The four bytes at `at` in every lane.
inline __m512i splat_word(const void* at) {
  int32_t word;
  std::memcpy(&word, at, sizeof word);
  return _mm512_set1_epi32(word);
}

// Even and odd elements of 32 bf16 in memory.
inline std::pair<f32x16, f32x16> load_pairs(const std::byte* at) {
  const __m512i words = _mm512_loadu_si512(at);
  const __m512i high = _mm512_and_si512(words, _mm512_set1_epi32(static_cast<int>(0xffff0000)));
  return {{_mm512_castsi512_ps(_mm512_slli_epi32(words, 16))}, {_mm512_castsi512_ps(high)}};
}

#if defined(__AVX512BF16__)
inline __m256i to_bf16(f32x16 a) { return reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(a.v)); }
#else
inline __m256i to_bf16(f32x16 a) {
  const __m512i bits = _mm512_castps_si512(a.v);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
  const __mmask16 is_nan = _mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q);
  return _mm512_cvtepi32_epi16(_mm512_srli_epi32(_mm512_mask_mov_epi32(rounded, is_nan, _mm512_set1_epi32(0x7fc00000)), 16));
}
#endif
inline void store(bf16* at, f32x16 a) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(at), to_bf16(a)); }
inline void store_around_cache(bf16* at, f32x16 a) { _mm256_stream_si256(reinterpret_cast<__m256i*>(at), to_bf16(a)); }
inline f32x16 round_to_bf16(f32x16 a) {
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(to_bf16(a)), 16))};
}

// a in lanes [begin, end), other elsewhere; begin and end may lie outside of 0..16.
inline f32x16 select_lanes(f32x16 a, f32x16 other, int begin, int end) {
  const uint32_t upto = (1u << std::clamp(end, 0, lanes)) - 1, before = (1u << std::clamp(begin, 0, lanes)) - 1;
  return {_mm512_mask_mov_ps(other.v, static_cast<__mmask16>(upto & ~before), a.v)};
}

// 2^a to 2e-7; exactly 1 at 0 and 0 at -inf.
inline f32x16 exp2(f32x16 a) {
  const __m512 f = _mm512_reduce_ps(a.v, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
  __m512 p = _mm512_set1_ps(0x1.e974fcp-10f);
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0x1.277854p-7f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0x1.c91ce6p-5f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0x1.ebdb56p-3f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0x1.62e4bap-1f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1));
  return {_mm512_scalef_ps(p, a.v)};
}

#else  // AVX2

struct f32x16 {
  __m256 v[2];
  static f32x16 splat(float x) { return {{_mm256_set1_ps(x), _mm256_set1_ps(x)}}; }
};

template <class Op>
f32x16 each(f32x16 a, Op op) {
  return {{op(a.v[0]), op(a.v[1])}};
}
template <class Op>
f32x16 each(f32x16 a, f32x16 b, Op op) {
  return {{op(a.v[0], b.v[0]), op(a.v[1], b.v[1])}};
}

inline f32x16 operator+(f32x16 a, f32x16 b) { return each(a, b, [](__m256 x, __m256 y) { return _mm256_add_ps(x, y); }); }
inline f32x16 operator-(f32x16 a, f32x16 b) { return each(a, b, [](__m256 x, __m256 y) { return _mm256_sub_ps(x, y); }); }
inline f32x16 operator*(f32x16 a, f32x16 b) { return each(a, b, [](__m256 x, __m256 y) { return _mm256_mul_ps(x, y); }); }
inline f32x16 operator/(f32x16 a, f32x16 b) { return each(a, b, [](__m256 x, __m256 y) { return _mm256_div_ps(x, y); }); }
inline f32x16 max(f32x16 a, f32x16 b) { return each(a, b, [](__m256 x, __m256 y) { return _mm256_max_ps(x, y); }); }
inline f32x16 fma(f32x16 a, f32x16 b, f32x16 c) {
  return {{_mm256_fmadd_ps(a.v[0], b.v[0], c.v[0]), _mm256_fmadd_ps(a.v[1], b.v[1], c.v[1])}};
}
inline f32x16 abs(f32x16 a) { return each(a, [](__m256 x) { return _mm256_andnot_ps(_mm256_set1_ps(-0.f), x); }); }

template <class Op>
float reduce(f32x16 a, Op op) {
  const __m256 half = op(a.v[0], a.v[1]);
  __m128 x = _mm256_castps256_ps128(op(half, _mm256_permute2f128_ps(half, half, 1)));
  const auto op4 = [&](__m128 p, __m128 q) {
    return _mm256_castps256_ps128(op(_mm256_castps128_ps256(p), _mm256_castps128_ps256(q)));
  };
  x = op4(x, _mm_movehl_ps(x, x));
  return _mm_cvtss_f32(op4(x, _mm_movehdup_ps(x)));
}
inline float reduce_add(f32x16 a) { return reduce(a, [](__m256 x, __m256 y) { return _mm256_add_ps(x, y); }); }
inline float reduce_max(f32x16 a) { return reduce(a, [](__m256 x, __m256 y) { return _mm256_max_ps(x, y); }); }

inline f32x16 max_or_nan(f32x16 a, f32x16 b) {
  return each(a, b, [](__m256 x, __m256 y) { return _mm256_castsi256_ps(_mm256_max_epu32(_mm256_castps_si256(x), _mm256_castps_si256(y))); });
}
inline uint32_t reduce_max_bits(f32x16 a) {
  const __m256i half = _mm256_max_epu32(_mm256_castps_si256(a.v[0]), _mm256_castps_si256(a.v[1]));
  __m128i x = _mm_max_epu32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
  x = _mm_max_epu32(x, _mm_shuffle_epi32(x, 0x4e));
  return static_cast<uint32_t>(_mm_cvtsi128_si32(_mm_max_epu32(x, _mm_shuffle_epi32(x, 0xb1))));
}

inline f32x16 load(const float* at) { return {{_mm256_loadu_ps(at), _mm256_loadu_ps(at + 8)}}; }
inline __m256 widen(__m128i a) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(a), 16)); }
inline f32x16 load(const bf16* at) {
  const __m128i* words = reinterpret_cast<const __m128i*>(at);
  return {{widen(_mm_loadu_si128(words)), widen(_mm_loadu_si128(words + 1))}};
}
inline void store(float* at, f32x16 a) {
  _mm256_storeu_ps(at, a.v[0]);
  _mm256_storeu_ps(at + 8, a.v[1]);
}
inline void store_around_cache(float* at, f32x16 a) {
  _mm256_stream_ps(at, a.v[0]);
  _mm256_stream_ps(at + 8, a.v[1]);
}

inline __m128i to_int8(f32x16 a) {
  const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(_mm256_cvtps_epi32(a.v[0]), _mm256_cvtps_epi32(a.v[1])), 0xd8);
  return _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
}

inline std::pair<f32x16, f32x16> load_pairs(const std::byte* at) {
  const __m256i* words = reinterpret_cast<const __m256i*>(at);
  f32x16 low, high;
  for (int i = 0; i < 2; ++i) {
    const __m256i word = _mm256_loadu_si256(words + i);
    low.v[i] = _mm256_castsi256_ps(_mm256_slli_epi32(word, 16));
    high.v[i] = _mm256_castsi256_ps(_mm256_and_si256(word, _mm256_set1_epi32(static_cast<int>(0xffff0000))));
  }
  return {low, high};
}

inline __m256i to_bf16(f32x16 a) {
  const auto half = [](__m256 x) {
    const __m256i bits = _mm256_castps_si256(x);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i rounded = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd);
    const __m256i is_nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
    return _mm256_srli_epi32(_mm256_blendv_epi8(rounded, _mm256_set1_epi32(0x7fc00000), is_nan), 16);
  };
  return _mm256_permute4x64_epi64(_mm256_packus_epi32(half(a.v[0]), half(a.v[1])), 0xd8);
}
inline void store(bf16* at, f32x16 a) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(at), to_bf16(a)); }
inline void store_around_cache(bf16* at, f32x16 a) { _mm256_stream_si256(reinterpret_cast<__m256i*>(at), to_bf16(a)); }
inline f32x16 round_to_bf16(f32x16 a) {
  const __m256i words = to_bf16(a);
  return {{widen(_mm256_castsi256_si128(words)), widen(_mm256_extracti128_si256(words, 1))}};
}

inline f32x16 select_lanes(f32x16 a, f32x16 other, int begin, int end) {
  const __m256i iota = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  for (int i = 0; i < 2; ++i) {
    const __m256i from = _mm256_cmpgt_epi32(iota, _mm256_set1_epi32(begin - 1 - 8 * i));
    const __m256i upto = _mm256_cmpgt_epi32(_mm256_set1_epi32(end - 8 * i), iota);
    a.v[i] = _mm256_blendv_ps(other.v[i], a.v[i], _mm256_castsi256_ps(_mm256_and_si256(from, upto)));
  }
  return a;
}

inline f32x16 exp2(f32x16 a) {
  return each(a, [](__m256 x) {
    x = _mm256_min_ps(_mm256_set1_ps(128), _mm256_max_ps(_mm256_set1_ps(-127), x));  // in this order NaN passes
    const __m256 whole = _mm256_floor_ps(x), f = _mm256_sub_ps(x, whole);
    __m256 p = _mm256_set1_ps(0x1.e974fcp-10f);
    p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(0x1.277854p-7f));
    p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(0x1.c91ce6p-5f));
    p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(0x1.ebdb56p-3f));
    p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(0x1.62e4bap-1f));
    p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(1));
    const __m256i exponent = _mm256_add_epi32(_mm256_cvtps_epi32(whole), _mm256_set1_epi32(127));
    return _mm256_mul_ps(p, _mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23)));
  });
}

#endif

// The largest of lanes from 0 on, NaN if one of them is not finite.
inline float reduce_max_or_nan(f32x16 a) {
  const uint32_t bits = reduce_max_bits(a), nan = 0x7fc00000;
  float value;
  std::memcpy(&value, bits < 0x7f800000 ? &bits : &nan, sizeof value);
  return value;
}

inline f32x16 exp(f32x16 a) { return exp2(a * f32x16::splat(1.4426950408889634f)); }

// The first `used` lanes; the others are zero, and their memory stays untouched.
template <class T>
f32x16 load(const T* at, int used) {
  if (used == lanes) return load(at);
  T copy[lanes] = {};
  std::memcpy(copy, at, used * sizeof(T));
  return load(copy);
}
template <class T>
void store(T* at, f32x16 a, int used) {
  if (used == lanes) return store(at, a);
  T copy[lanes];
  store(copy, a);
  std::memcpy(at, copy, used * sizeof(T));
}

// The lanes as at[parity], at[parity + 2] ...; the elements between them stay untouched.
inline void store_alternate(bf16* at, f32x16 a, int parity) {
#if defined(__AVX512BW__)
  const __m512i words = _mm512_cvtepu16_epi32(to_bf16(a));
  _mm512_mask_storeu_epi16(at, parity ? 0xaaaaaaaau : 0x55555555u, parity ? _mm512_slli_epi32(words, 16) : words);
#else
  bf16 copy[lanes];
  store(copy, a);
  for (int i = 0; i < lanes; ++i) at[2 * i + parity] = copy[i];
#endif
}

// The lanes' bytes as at[part], at[part + 4] ...; the bytes between them stay untouched.
inline void store_fourth(int8_t* at, __m128i bytes, int part) {
#if defined(__AVX512BW__)
  const __m512i words = _mm512_sll_epi32(_mm512_cvtepu8_epi32(bytes), _mm_cvtsi32_si128(8 * part));
  _mm512_mask_storeu_epi8(at, 0x1111111111111111u << part, words);
#else
  int8_t copy[lanes];
  _mm_storeu_si128(reinterpret_cast<__m128i*>(copy), bytes);
  for (int i = 0; i < lanes; ++i) at[4 * i + part] = copy[i];
#endif
}

// body(first column, lanes used) over `columns` columns, 16 at a time.
template <int columns, class Body>
void for_columns(Body body) {
  for (int c = 0; c < columns / lanes * lanes; c += lanes) body(c, std::integral_constant<int, lanes>{});
  if constexpr (columns % lanes) body(columns / lanes * lanes, std::integral_constant<int, columns % lanes>{});
}

}  // namespace slipway
