// What codes stand for (quantization/formats.py): decoders of CPUs, of GPUs and of the emulated libraries are written with these. That bits are, where
// GPUs put them, the numbers meant is asserted for every code beside their decoders, whenever a kernel is compiled.
#pragma once
#include "slipway/integers.hpp"

namespace slipway::codes {

inline constexpr int int8_zero = 128, int4_zero = 8;  // the code of nought; of int4 where groups have none of their own
inline constexpr uint32_t e4m3_nan = 0x7f;            // beside its sign

constexpr float from_bits(uint32_t bits) { return __builtin_bit_cast(float, bits); }
constexpr uint32_t bits_of(float value) { return __builtin_bit_cast(uint32_t, value); }
constexpr float power_of_two(int exponent) { return from_bits(static_cast<uint32_t>(127 + exponent) << 23); }  // -126..127

constexpr float from_bf16(uint32_t bits) { return from_bits(bits << 16); }

// To the nearest, halves to even; NaN stays one.
constexpr uint16_t to_bf16(float value) {
  const uint32_t bits = bits_of(value);
  return static_cast<uint16_t>(value != value ? 0x7fff : (bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

// A sign, exponents from 1 on of numbers 1.f, and 0 of 0.f with the exponent of 1.
template <int exponent_bits, int fraction_bits> constexpr float small_float(uint32_t code) {
  constexpr int bias = (1 << (exponent_bits - 1)) - 1;
  const uint32_t exponent = code >> fraction_bits & ((1 << exponent_bits) - 1), fraction = code & ((1 << fraction_bits) - 1);
  const uint32_t whole = exponent ? 1u << fraction_bits | fraction : fraction;
  const float size = static_cast<float>(whole) * power_of_two(static_cast<int>(exponent ? exponent : 1) - bias - fraction_bits);
  return code >> (exponent_bits + fraction_bits) & 1 ? -size : size;
}
constexpr float e2m1(uint32_t code) { return small_float<2, 1>(code); }
constexpr float e4m3(uint32_t code) { return (code & 0x7f) == e4m3_nan ? from_bits(0x7fc00000) : small_float<4, 3>(code); }
constexpr float e8m0(uint32_t code) { return code ? power_of_two(static_cast<int>(code) - 127) : from_bits(1u << 22); }

// Whether something holds of every code below `end`.
template <class Holds> constexpr bool all(uint32_t end, Holds holds) {
  for (uint32_t code = 0; code < end; ++code)
    if (!holds(code)) return false;
  return true;
}

}  // namespace slipway::codes
