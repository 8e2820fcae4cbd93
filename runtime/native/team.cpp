#include "team.hpp"

#include <pthread.h>
#include <sched.h>
#include <unistd.h>

namespace slipway {

// Two spinning threads on one core take turns while another core idles, and the kernel is slow to see it: a team that has
// all cores to itself takes one each. A smaller team leaves the choice to the kernel, for others may be there.
void keep_own_core(int32_t rank, int32_t size) {
  cpu_set_t usable;
  if (sched_getaffinity(getpid(), sizeof usable, &usable) != 0 || CPU_COUNT(&usable) != size) return;
  for (int cpu = 0, seen = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (!CPU_ISSET(cpu, &usable) || seen++ != rank) continue;
    cpu_set_t own;
    CPU_ZERO(&own);
    CPU_SET(cpu, &own);
    pthread_setaffinity_np(pthread_self(), sizeof own, &own);
  }
}

Team::Team(int32_t size) : size_(size) {
  workers_.reserve(static_cast<size_t>(size - 1));
  try {
    for (int32_t rank = 1; rank < size; ++rank) workers_.push_back(start_thread([this, rank] { work(rank); }));
  } catch (...) {
    stop();
    throw;
  }
}

Team::~Team() { stop(); }

void Team::stop() {
  stopping_ = true;
  round_.fetch_add(1, std::memory_order_release);
  round_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void Team::start(Function function, const void* job) {
  function_ = function;
  job_ = job;
  round_.fetch_add(1, std::memory_order_release);
  round_.notify_all();
  function(job, 0);
  barrier_.wait(static_cast<uint32_t>(size_));
}

void Team::work(int32_t rank) {
  pthread_setname_np(pthread_self(), "slipway-worker");
  keep_own_core(rank, size_);
  for (uint32_t seen = 0;;) {
    seen = next_round(seen);
    if (stopping_) return;
    function_(job_, rank);
    barrier_.wait(static_cast<uint32_t>(size_));
  }
}

uint32_t Team::next_round(uint32_t seen) {
  const auto deadline = std::chrono::steady_clock::now() + spin_time;
  while (std::chrono::steady_clock::now() < deadline) {
    for (int i = 0; i < 64; ++i) {
      if (const uint32_t round = round_.load(std::memory_order_acquire); round != seen) return round;
#if defined(__x86_64__)
      _mm_pause();
#endif
    }
  }
  round_.wait(seen, std::memory_order_acquire);
  return round_.load(std::memory_order_acquire);
}

}  // namespace slipway
