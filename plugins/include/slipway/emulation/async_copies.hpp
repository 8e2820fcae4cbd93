// cp.async on the host. A copy is made at once or when it is waited for, as a coin falls: so a missing wait shows, and so does
// a copy that is issued while others still read what it overwrites.
#pragma once
#include "slipway/emulation/block.hpp"

namespace slipway::emulation {

inline void make(const AsyncCopy& copy) {
  if (copy.from)
    std::memcpy(copy.to, copy.from, copy.bytes);
  else
    std::memset(copy.to, 0, copy.bytes);
}

inline void issue_copy(void* to, const void* from, uint32_t bytes) {
  Block& block = Block::current();
  Thread& thread = *Block::self();
  const AsyncCopy copy{static_cast<std::byte*>(to), static_cast<const std::byte*>(from), bytes, thread.copy_groups};
  if (reinterpret_cast<uintptr_t>(to) % bytes || reinterpret_cast<uintptr_t>(from) % bytes) block.fail("a copy of %u bytes that is not aligned to as many", bytes);
  if (block.random().next() & 1) return make(copy);
  std::memset(to, 0xff, bytes);
  thread.copies.push_back(copy);
}

inline void commit_copies() { ++Block::self()->copy_groups; }

// All groups but the last `pending` have arrived.
inline void wait_for_copies(uint64_t pending) {
  Thread& thread = *Block::self();
  std::erase_if(thread.copies, [&](const AsyncCopy& copy) {
    const bool due = copy.group + pending < thread.copy_groups;
    if (due) make(copy);
    return due;
  });
}

}  // namespace slipway::emulation
