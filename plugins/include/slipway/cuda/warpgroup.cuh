// What four warps do together from sm90a on: products of registers and shared memory that go on behind the threads' backs (wgmma), and
// bulk copies into shared memory that arrive at a barrier there (mbarrier).
//
// A product's sums and its operand in registers may not be touched before it is waited for, nor may its operand in shared memory.
#pragma once
#include "slipway/cuda/device.cuh"

namespace slipway::cuda {

// A block begins with the same number of registers for each of its threads, a multiple of eight. What its warpgroups take of them by
// take_registers is what others gave: if all that they want, `wanted`, is more, one waits for ever.
inline constexpr int registers_of_block(int threads) { return 65536 / threads / 8 * 8 * threads; }
inline constexpr bool shares_fit(int threads, int wanted) { return wanted <= registers_of_block(threads); }

// A matrix in shared memory as wgmma is told of it: rows of 64 or 128 bytes, eight of them at a boundary of as many times eight bytes; of
// a row the 16-byte pieces swapped, by the row's number in 128 bytes, by half of it in 64 ("Matrix descriptor" and "Swizzling modes" of the
// PTX manual: start address, a stride that swizzled matrices do not have, the stride of eight rows, the mode).
inline constexpr uint64_t matrix_bits(uint32_t shared_address, int row_bytes) {
  return (shared_address >> 4 & 0x3fff) | uint64_t{1} << 16 | uint64_t{static_cast<uint32_t>(8 * row_bytes) >> 4} << 32 |
         uint64_t{row_bytes == 128 ? 1u : 2u} << 62;
}

}  // namespace slipway::cuda

#if defined(__CUDACC_RTC__)
#include "slipway/cuda/warpgroup_ptx.cuh"
#else
#include "slipway/emulation/warpgroup.hpp"
#endif
