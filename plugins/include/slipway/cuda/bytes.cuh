// Numbers of eight bits: integers, and floats of four bits of exponent and three of fraction (e4m3).
//
// Four neighbours lie in a word as 2 0 3 1, so that each decodes to two pairs of bf16, exactly, in a few instructions.
#pragma once
#include "slipway/codes.hpp"
#include "slipway/cuda/device.cuh"

namespace slipway::cuda {

// Where the one of a number, 0..3, lies among four.
inline constexpr int byte_of(int number) { return number == 0 ? 1 : number == 1 ? 3 : number == 2 ? 0 : 2; }

// The larger of two, NaN if one is: the scale that is made of it says it.
inline float larger_or_nan(float a, float b) { return b > a || b != b ? b : a; }

// What codes are to be multiplied by, and what makes numbers codes, of which the largest has the largest code. Numbers of which one is infinite are NaN.
template <class Code> inline float scale_of_codes(float largest) { return largest <= 3.402823466e38f ? largest / Code::largest : as_float(0x7fc00000u); }
template <class Code> inline float codes_per_unit(float largest) { return largest > 0 ? min(Code::largest / largest, 3.402823466e38f) : 0; }

// Codes are 128 + q: put below the exponent of 2^23 they are 2^23 + 128 + q, and q has no more bits than bf16 holds.
struct Int8Code {
  static constexpr float largest = 127;
  static void decode(uint32_t four, uint32_t& first, uint32_t& second) {
    const auto value = [&](uint32_t byte) { return as_bits(as_float(__byte_perm(four, 0x4b000000u, 0x7440u | byte)) - (0x1p23f + codes::int8_zero)); };
    first = __byte_perm(value(1), value(3), 0x7632);
    second = __byte_perm(value(0), value(2), 0x7632);
  }
  // To the nearest, ties to even: 1.5 * 2^23 has no room for fractions. |x| <= largest.
  static uint32_t encode(float x) { return (as_bits(x + 12582912.0f) + codes::int8_zero) & 0xff; }
};
static_assert(codes::all(256, [](uint32_t code) {
  const float value = codes::from_bits(0x4b000000u | code) - (0x1p23f + codes::int8_zero);
  return value == static_cast<int>(code) - codes::int8_zero && codes::from_bf16(codes::bits_of(value) >> 16) == value;
}));

// e4m3 one place right of where bf16 has its exponent: 2^-120 of the value, subnormals too.
struct Fp8Code {
  static constexpr float largest = codes::e4m3(codes::e4m3_nan - 1);
  static void decode(uint32_t four, uint32_t& first, uint32_t& second) {
    const auto pair = [](uint32_t high_bytes) {
      return fma_bf16x2((high_bytes & 0x80008000u) | ((high_bytes & 0x7f007f00u) >> 4), 0x7b807b80u, 0x80008000u);  // times 2^120
    };
    first = pair(four);
    second = pair(four << 8);
  }
  // Of a code that is not negative.
  static float value(uint32_t code) { return as_float(code << 20) * 0x1p120f; }
  // To the nearest, ties to even. |x| < 464, else any code.
  static uint32_t encode(float x) {
    const uint32_t sign = as_bits(x) >> 24 & 0x80, size = as_bits(x) & 0x7fffffffu;
    if (as_float(size) < 0x1p-6f) return sign | (as_bits(as_float(size) + 0x1p14f) - as_bits(0x1p14f));  // subnormal: steps of 2^-9
    return sign | (((size + 0x7ffffu + (size >> 20 & 1)) >> 20) - (120u << 3) & 0x7f);
  }
};
static_assert(codes::all(256, [](uint32_t code) {
  const bool is_nan = (code & 0x7f) == codes::e4m3_nan;
  return is_nan || codes::from_bf16((code & 0x80) << 8 | (code & 0x7f) << 4) * 0x1p120f == codes::e4m3(code);
}));

}  // namespace slipway::cuda
