#include "team.hpp"

#include <pthread.h>
#include <sched.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cstddef>

namespace slipway {

namespace {

// A name in the network namespace's table of abstract sockets: one holder at a time, whatever its process, and none once it has
// ended. Containers have a namespace each.
// -> a descriptor; -1 if another holds the name, or no names are to be had
int claim(const std::string& name) {
  sockaddr_un address{.sun_family = AF_UNIX, .sun_path = {}};
  name.copy(address.sun_path + 1, sizeof address.sun_path - 2);
  const int descriptor = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
  if (descriptor < 0) return -1;
  const auto length = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + name.size());
  if (bind(descriptor, reinterpret_cast<const sockaddr*>(&address), length) == 0) return descriptor;
  close(descriptor);
  return -1;
}

}  // namespace

// Two spinning threads on one core take turns while another core idles, and the kernel is slow to see it: a team that has
// all cores to itself takes one each. A smaller team leaves the choice to the kernel, for others may be there; and so does
// every team but the first that is seen, for two threads bound to one core could not get out of each other's way.
OwnCore::OwnCore(int32_t rank, int32_t size) {
  cpu_set_t usable;
  if (sched_getaffinity(getpid(), sizeof usable, &usable) != 0 || CPU_COUNT(&usable) != size) return;
  for (int cpu = 0, seen = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (!CPU_ISSET(cpu, &usable) || seen++ != rank) continue;
    claim_ = claim("slipway-core-" + std::to_string(cpu));
    if (claim_ < 0) return;
    cpu_set_t own;
    CPU_ZERO(&own);
    CPU_SET(cpu, &own);
    pthread_setaffinity_np(pthread_self(), sizeof own, &own);
  }
}

OwnCore::~OwnCore() {
  if (claim_ >= 0) close(claim_);
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
  const OwnCore core(rank, size_);
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
