// What the emulated driver hands to a kernel compiled for emulation: extern "C" void <kernel>(const Launch&).
#pragma once
#include <atomic>
#include <cstddef>
#include <cstdint>

namespace slipway::emulation {

struct Extent {
  uint32_t x = 1, y = 1, z = 1;
  uint64_t count() const { return uint64_t{x} * y * z; }
};

// One launch of a kernel. Any number of host threads may run blocks of it at once.
struct Launch {
  Extent grid, block;
  uint32_t shared_bytes;
  uint64_t seed;                     // 0: threads and blocks run in order
  const void* arguments;
  std::atomic<uint64_t>* next_block; // at zero; blocks are claimed from it
  std::atomic<bool>* failed;
  char* error;                       // [error_bytes], written by whoever sets `failed`
};
inline constexpr size_t error_bytes = 256;

}  // namespace slipway::emulation
