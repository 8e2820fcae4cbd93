// What CUDA C++ and PTX give a kernel, on the host.
#pragma once
#include <algorithm>
#include <bit>
#include <cmath>
#include <type_traits>

#include "slipway/emulation/async_copies.hpp"
#include "slipway/emulation/block.hpp"
#include "slipway/emulation/matrix.hpp"

#define threadIdx (slipway::emulation::Block::self()->index)
#define blockIdx (slipway::emulation::Block::current().index())
#define blockDim (slipway::emulation::Block::current().launch().block)
#define gridDim (slipway::emulation::Block::current().launch().grid)

// extern "C" <name>: the kernel's threads execute what follows, with `call` in scope.
#define SLIPWAY_KERNEL(name, threads, blocks)                                                                              \
  static void name##_after(const slipway::cuda::Call& call);                                                               \
  SLIPWAY_KERNEL_THAT_WAITS(name, threads, blocks) {                                                                       \
    slipway::cuda::wait_for_previous();                                                                                    \
    name##_after(call);                                                                                                    \
  }                                                                                                                        \
  static void name##_after([[maybe_unused]] const slipway::cuda::Call& call)

#define SLIPWAY_KERNEL_THAT_WAITS(name, threads, blocks)                                                                              \
  static void name##_thread(const slipway::cuda::Call& call);                                                              \
  extern "C" [[gnu::visibility("default")]] void name(const slipway::emulation::Launch& launch) {                          \
    slipway::emulation::Block::run_all(                                                                                    \
        launch, [](const void* arguments) { name##_thread(*static_cast<const slipway::cuda::Call*>(arguments)); });        \
  }                                                                                                                        \
  static void name##_thread([[maybe_unused]] const slipway::cuda::Call& call)

inline void __syncthreads() { slipway::emulation::Block::current().wait_for_block(); }
inline bool __syncthreads_or(bool mine) { return slipway::emulation::Block::current().wait_for_block(mine); }
inline void __syncwarp() { slipway::emulation::Block::current().meet("__syncwarp", 0, [](auto*) {}); }
inline void __threadfence() { std::atomic_thread_fence(std::memory_order_seq_cst); }

template <class T> T __shfl_sync(uint32_t, const T& value, int lane) {
  T result;
  const auto* slots = slipway::emulation::Block::current().meet("shuffle", value, [](auto*) {});
  std::memcpy(&result, &slots[lane % slipway::emulation::warp_size], sizeof result);
  return result;
}
template <class T> T __shfl_xor_sync(uint32_t mask, const T& value, int other) {
  return __shfl_sync(mask, value, slipway::emulation::Block::self()->rank % slipway::emulation::warp_size ^ other);
}
inline uint32_t __ballot_sync(uint32_t, bool here) {
  const auto* slots = slipway::emulation::Block::current().meet("ballot", here, [](auto*) {});
  uint32_t result = 0;
  for (int lane = 0; lane < slipway::emulation::warp_size; ++lane) result |= uint32_t{slots[lane].bytes[0] != std::byte{0}} << lane;
  return result;
}
inline uint32_t __byte_perm(uint32_t low, uint32_t high, uint32_t selector) {
  const uint64_t bytes = uint64_t{high} << 32 | low;
  uint32_t result = 0;
  for (int i = 0; i < 4; ++i) {
    const uint32_t select = selector >> (4 * i) & 15, byte = static_cast<uint32_t>(bytes >> (8 * (select & 7))) & 0xff;
    result |= (select & 8 ? (byte & 0x80 ? 0xffu : 0u) : byte) << (8 * i);
  }
  return result;
}
inline int __popc(uint32_t bits) { return std::popcount(bits); }
inline int __ffs(uint32_t bits) { return bits ? std::countr_zero(bits) + 1 : 0; }

namespace slipway::cuda {

// The kernel before has ended, here always: that every thread waits for it is seen to.
inline void wait_for_previous() { emulation::Block::self()->waited = true; }

using std::max;
using std::min;

inline float as_float(uint32_t bits) { return std::bit_cast<float>(bits); }
inline uint32_t as_bits(float value) { return std::bit_cast<uint32_t>(value); }
inline float exp2_approximate(float x) { return std::exp2(x); }
inline float infinity() { return std::bit_cast<float>(0x7f800000u); }
inline float inverse_sqrt(float x) { return 1 / std::sqrt(x); }
inline float divide_approximate(float a, float b) { return a / b; }

template <class Shared> Shared& shared() {
  emulation::Block& block = emulation::Block::current();
  if (sizeof(Shared) > block.launch().shared_bytes) block.fail("%zu bytes of shared memory in a launch that gives %u", sizeof(Shared), block.launch().shared_bytes);
  return *reinterpret_cast<Shared*>(block.shared());
}

inline uint16_t round_to_bf16(float value) { return codes::to_bf16(value); }
inline uint32_t pack_bf16(float low, float high) { return uint32_t{round_to_bf16(high)} << 16 | round_to_bf16(low); }

// a * b + c of both halves, rounded once (double holds any product of two bf16 and these sums).
inline uint32_t fma_bf16x2(uint32_t a, uint32_t b, uint32_t c) {
  const auto half = [](float x, float y, float z) { return static_cast<float>(double{x} * y + z); };
  return pack_bf16(half(emulation::low_bf16(a), emulation::low_bf16(b), emulation::low_bf16(c)),
                   half(emulation::high_bf16(a), emulation::high_bf16(b), emulation::high_bf16(c)));
}

inline void mma_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) { emulation::mma_bf16(d, a, b); }

inline void check_alignment(const void* at, int bytes) {
  if (reinterpret_cast<uintptr_t>(at) % static_cast<unsigned>(bytes)) emulation::Block::current().fail("an access to %d bytes that is not aligned to as many", bytes);
}
template <class Vector> Vector load_streaming(const Vector* from) {
  check_alignment(from, sizeof(Vector));
  return *from;
}

inline void copy_async_16(void* to, const void* from, bool there) { emulation::issue_copy(to, there ? from : nullptr, 16); }
inline void commit_copies() { emulation::commit_copies(); }
template <int pending> void wait_for_copies() { emulation::wait_for_copies(pending); }

inline int fetch_add(int* shared, int count) { return std::atomic_ref<int>(*shared).fetch_add(count); }

// The old value; `last` is followed by 0.
inline uint32_t increment_wrapping(uint32_t* counter, uint32_t last) {
  std::atomic_ref<uint32_t> atomic(*counter);
  uint32_t old = atomic.load();
  while (!atomic.compare_exchange_weak(old, old >= last ? 0 : old + 1)) {}
  return old;
}

}  // namespace slipway::cuda
