// What a CUDA kernel of a plugin includes: its arguments, the numbers it stores, and the instructions it is made of.
//
// NVRTC compiles kernels for a GPU (functions are the device's by default); any C++20 compiler compiles them for its emulation.
#pragma once
#include "slipway/cuda/call.hpp"
#if defined(__CUDACC_RTC__)
#include "slipway/cuda/intrinsics.cuh"
#else
#include "slipway/emulation/intrinsics.hpp"
#endif

namespace slipway::cuda {

template <class A, class B> inline constexpr bool is_same = false;
template <class A> inline constexpr bool is_same<A, A> = true;

struct bf16 {
  uint16_t bits;
};

template <int count> struct alignas(4 * count) Words {
  uint32_t words[count];
};

inline float to_float(float x) { return x; }
inline float to_float(bf16 x) { return as_float(uint32_t{x.bits} << 16); }
inline void store(float* to, float x) { *to = x; }
inline void store(bf16* to, float x) { to->bits = round_to_bf16(x); }

// Eight neighbours as four pairs of bf16, from 16-byte aligned memory.
inline Words<4> load_eight(const bf16* from) {
  check_alignment(from, 16);
  return *reinterpret_cast<const Words<4>*>(from);
}
inline Words<4> load_eight(const float* from) {
  Words<4> result;
#pragma unroll
  for (int i = 0; i < 4; ++i) result.words[i] = pack_bf16(from[2 * i], from[2 * i + 1]);
  return result;
}

// Two neighbours, to memory aligned to both.
inline void store_two(bf16* to, const float (&x)[2]) {
  check_alignment(to, 4);
  *reinterpret_cast<Words<1>*>(to) = {{pack_bf16(x[0], x[1])}};
}
inline void store_two(float* to, const float (&x)[2]) {
  check_alignment(to, 8);
  *reinterpret_cast<Words<2>*>(to) = {{as_bits(x[0]), as_bits(x[1])}};
}

// Eight neighbours, to 16-byte aligned memory.
inline void store_eight(bf16* to, const float (&x)[8]) {
  check_alignment(to, 16);
  *reinterpret_cast<Words<4>*>(to) = {{pack_bf16(x[0], x[1]), pack_bf16(x[2], x[3]), pack_bf16(x[4], x[5]), pack_bf16(x[6], x[7])}};
}
inline void store_eight(float* to, const float (&x)[8]) {
  check_alignment(to, 16);
#pragma unroll
  for (int i = 0; i < 2; ++i)
    reinterpret_cast<Words<4>*>(to)[i] = {{as_bits(x[4 * i]), as_bits(x[4 * i + 1]), as_bits(x[4 * i + 2]), as_bits(x[4 * i + 3])}};
}

inline constexpr float log2_e = 1.4426950408889634f;

inline int lane() { return static_cast<int>(threadIdx.x) % 32; }  // of a block of one dimension

// merge() over a warp, in every lane; the same order whoever calls.
template <class T, class Merge> inline T warp_reduce(T x, Merge merge) {
#pragma unroll
  for (int other = 16; other; other /= 2) x = merge(x, __shfl_xor_sync(~0u, x, other));
  return x;
}
inline float warp_sum(float x) {
  return warp_reduce(x, [](float a, float b) { return a + b; });
}
template <class T> inline T warp_max(T x) {
  return warp_reduce(x, [](T a, T b) { return max(a, b); });
}

}  // namespace slipway::cuda
