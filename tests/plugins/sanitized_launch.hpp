// main() of a program that launches one emulated kernel on buffers of the heap, for AddressSanitizer: it knows their ends to the byte.
#pragma once
#include <cstdio>
#include <memory>
#include <vector>

#include "slipway/cuda/call.hpp"
#include "slipway/emulation/launch.hpp"

namespace sanitized {

// `bytes` bytes of ones, as bf16 or float.
inline std::byte* buffer(size_t bytes) {
  static std::vector<std::unique_ptr<unsigned char[]>> all;
  unsigned char* data = all.emplace_back(new unsigned char[bytes]).get();
  for (size_t i = 0; i < bytes; ++i) data[i] = i % 2 ? 0x3f : 0x80;
  return reinterpret_cast<std::byte*>(data);
}

inline int run(void (*kernel)(const slipway::emulation::Launch&), const slipway::cuda::Call& call, slipway::emulation::Extent grid, uint32_t threads,
               uint32_t shared_bytes) {
  std::atomic<uint64_t> next{0};
  std::atomic<bool> failed{false};
  char error[slipway::emulation::error_bytes] = "";
  kernel({grid, {threads, 1, 1}, shared_bytes, 7, &call, &next, &failed, error});
  if (failed) std::fprintf(stderr, "%s\n", error);
  return failed;
}

}  // namespace sanitized
