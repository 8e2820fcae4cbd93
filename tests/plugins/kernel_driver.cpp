// Runs a compiled kernel as the runtime would: a team of threads, a barrier after every call, tickets at zero before it.
#include <pthread.h>
#include <sched.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <thread>
#include <vector>

#include "slipway/abi.hpp"

using namespace slipway;

namespace {

// Linux grants AMX tile data once per process and on request only.
bool allow_tiles() {
#if defined(__AMX_TILE__) && !defined(_tile_loadconfig)  // not emulated
  constexpr long arch_req_xcomp_perm = 0x1023, xfeature_xtiledata = 18;
  return syscall(SYS_arch_prctl, arch_req_xcomp_perm, xfeature_xtiledata) == 0;
#else
  return true;
#endif
}

// Of one thread its processor time, which other processes disturb less; of a team, time on the clock.
double now(int threads) {
  timespec time;
  clock_gettime(threads == 1 ? CLOCK_THREAD_CPUTIME_ID : CLOCK_MONOTONIC, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

// Each rank on a core of its own, where there are as many: two that spin on one core would take turns.
template <class Body>
void with_team(int threads, Body body) {
  cpu_set_t usable;
  const bool pins = threads > 1 && sched_getaffinity(0, sizeof usable, &usable) == 0 && CPU_COUNT(&usable) >= threads;
  const auto start = [&](int rank) {
    cpu_set_t own;
    CPU_ZERO(&own);
    for (int cpu = 0, seen = 0; cpu < CPU_SETSIZE; ++cpu) {
      if (CPU_ISSET(cpu, &usable) && seen++ == rank) CPU_SET(cpu, &own);
    }
    if (pins) pthread_setaffinity_np(pthread_self(), sizeof own, &own);
    body(rank);
  };
  std::vector<std::thread> team;
  for (int rank = 1; rank < threads; ++rank) team.emplace_back(start, rank);
  start(0);
  for (auto& thread : team) thread.join();
  if (pins) pthread_setaffinity_np(pthread_self(), sizeof usable, &usable);
}

}  // namespace

// Calls `kernel` `rounds` times; round r uses weights[r * weights_per_round, ...) and its time goes to seconds[r].
// `call` gives everything but rank, size, barrier, tickets, weights and local. Returns 0, or 1 if the system denies AMX.
extern "C" [[gnu::visibility("default")]] int driver_run(Kernel kernel, const Call* call, int threads, std::byte* const* locals, int rounds,
                          const std::byte* const* weights, int weights_per_round, double* seconds) {
  static const bool allowed = allow_tiles();
  if (!allowed) return 1;
  Barrier barrier;
  std::vector<Ticket> tickets(static_cast<size_t>(rounds) * tickets_per_call);
  with_team(threads, [&](int rank) {
    Call mine = *call;
    mine.rank = rank;
    mine.size = threads;
    mine.barrier = &barrier;
    mine.local = locals[rank];
    mine.sync();
    double start = now(threads);
    for (int round = 0; round < rounds; ++round) {
      mine.tickets = &tickets[round * tickets_per_call];
      mine.weights = weights + round * weights_per_round;
      kernel(mine);
      mine.sync();
      const double end = now(threads);
      if (rank == 0) seconds[round] = end - start;
      start = end;
    }
  });
  return 0;
}

// Seconds that `threads` threads need to read `bytes` once, each its own part front to back.
extern "C" [[gnu::visibility("default")]] double driver_read(const std::byte* data, int64_t bytes, int threads) {
  Barrier barrier;
  double seconds = 0;
  with_team(threads, [&](int rank) {
    const std::byte* at = data + bytes / threads / 64 * 64 * rank;
    const std::byte* end = at + bytes / threads / 64 * 64;
    barrier.wait(threads);
    const double start = now(threads);
    __m256i sum = _mm256_setzero_si256();
    for (; at < end; at += 64) {
      _mm_prefetch(at + 4096, _MM_HINT_T0);
      sum = _mm256_xor_si256(sum, _mm256_load_si256(reinterpret_cast<const __m256i*>(at)));
      sum = _mm256_xor_si256(sum, _mm256_load_si256(reinterpret_cast<const __m256i*>(at + 32)));
    }
    asm volatile("" ::"x"(sum));
    barrier.wait(threads);
    if (rank == 0) seconds = now(threads) - start;
  });
  return seconds;
}
