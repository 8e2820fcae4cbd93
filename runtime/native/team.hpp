// A team of threads that run one job together, again and again.
//
// Rank 0 is the thread that calls run(); the others wait, spinning for `spin_time` after the last job and sleeping after that.
// run() returns when every thread has finished the job, and what they wrote is visible to the caller.
#pragma once
#include <atomic>
#include <chrono>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

#include "slipway/abi.hpp"

namespace slipway {

// Binds the calling thread to a core of its own, if its team has as many threads as the process has cores and no thread of
// another team is bound to that core. Lives as long as the thread.
class OwnCore {
 public:
  OwnCore(int32_t rank, int32_t size);
  ~OwnCore();
  OwnCore(const OwnCore&) = delete;

 private:
  int claim_ = -1;  // a descriptor
};

// A thread that runs `work`; std::runtime_error says what to do where the system refuses one.
template <class Work> std::thread start_thread(const Work& work) {
  try {
    return std::thread(work);
  } catch (const std::system_error& error) {
    throw std::runtime_error(std::string("a thread cannot be started (") + error.code().message() +
                             "); ask for fewer threads, or raise the limits on processes and memory");
  }
}

class Team {
 public:
  static constexpr std::chrono::microseconds spin_time{150};

  explicit Team(int32_t size);  // throws std::runtime_error if the system refuses so many threads
  ~Team();
  Team(const Team&) = delete;

  int32_t size() const { return size_; }
  Barrier& barrier() { return barrier_; }  // of all threads, for use inside a job

  // Calls job(rank) on every thread. One caller at a time; the job must not throw.
  template <class Job> void run(const Job& job) {
    start([](const void* job, int32_t rank) { (*static_cast<const Job*>(job))(rank); }, &job);
  }

 private:
  using Function = void (*)(const void*, int32_t rank);

  void start(Function function, const void* job);
  void work(int32_t rank);
  void stop();
  uint32_t next_round(uint32_t seen);

  int32_t size_;
  Function function_ = nullptr;
  const void* job_ = nullptr;
  bool stopping_ = false;
  alignas(64) std::atomic<uint32_t> round_{0};
  Barrier barrier_;
  std::vector<std::thread> workers_;
};

}  // namespace slipway
