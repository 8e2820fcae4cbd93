// The contract between the runtime, which replays a plan, and the kernels that were compiled for it.
//
// Every thread of the team calls every kernel of the plan, in order; a kernel splits its work over the team and
// may meet it at `team.barrier()`. The runtime puts one barrier after each kernel. Buffers are row-major; a row is a
// token, or a wanted logit row once the plan has gathered them.
#pragma once
#include <atomic>
#if defined(__x86_64__)
#include <immintrin.h>
#endif
#include <sched.h>

#include "slipway/batch.hpp"

namespace slipway {

inline constexpr uint32_t abi_version = 1;

// Spin a little, then give the processor away: a waiting thread must not keep a needed one from running.
struct Backoff {
  int spins = 0;
  void operator()() {
    if (++spins < 4096) {
#if defined(__x86_64__)
      _mm_pause();
#endif
    } else {
      sched_yield();
    }
  }
};

// A barrier for a fixed number of threads; `generation` only grows.
struct alignas(64) Barrier {
  std::atomic<uint32_t> arrived{0};
  alignas(64) std::atomic<uint32_t> generation{0};
  void wait(uint32_t count) {
    const uint32_t seen = generation.load(std::memory_order_relaxed);
    if (arrived.fetch_add(1, std::memory_order_acq_rel) + 1 == count) {
      arrived.store(0, std::memory_order_relaxed);
      generation.store(seen + 1, std::memory_order_release);
      return;
    }
    for (Backoff backoff; generation.load(std::memory_order_acquire) == seen;) backoff();
  }
};

// Work shared out in order: each claim hands out the next `chunk` of [0, total). One line each, zeroed before the step.
struct alignas(64) Ticket {
  std::atomic<int64_t> next{0};
  int64_t claim(int64_t chunk) { return next.fetch_add(chunk, std::memory_order_relaxed); }
};
inline constexpr int tickets_per_call = 2;

struct Range {
  int64_t begin, end;
};

struct Call {
  const Batch* batch;
  int32_t rows;                    // at least 1, of this step's outputs: num_tokens, or num_logit_rows after the gather
  int32_t rank, size;              // this thread of the team
  Barrier* barrier;                // all `size` threads
  Ticket* tickets;                 // [tickets_per_call] at zero when the kernel starts, shared by the team
  const Operand* inputs;
  const Operand* outputs;
  const std::byte* const* weights; // packed, 64-byte aligned, read-only
  std::byte* kv;                   // this layer's KV blocks, or null
  std::byte* shared;               // scratch of the team, 64-byte aligned
  std::byte* local;                // scratch of this thread, 64-byte aligned
  void sync() const { barrier->wait(static_cast<uint32_t>(size)); }
  // This thread's part of [0, total), for work of even cost; thread 0 has the first.
  Range share(int64_t total) const {
    const int64_t part = (total + size - 1) / size, begin = part * rank;
    return {begin < total ? begin : total, begin + part < total ? begin + part : total};
  }
};

using Kernel = void (*)(const Call&);  // exported with C linkage under the name the plan's step gives

}  // namespace slipway
