// What the engine counts. The engine thread writes, anyone reads a copy.
#pragma once
#include <array>
#include <cstdint>
#include <map>
#include <mutex>
#include <string>

#include "scheduler.hpp"

namespace slipway {

// Of seconds, in buckets that grow by 2^(1/4) from a microsecond on.
class Histogram {
 public:
  void add(double seconds);
  double sum() const { return sum_; }
  uint64_t count() const { return count_; }
  double quantile(double share) const;  // the upper end of its bucket; 0 when empty

 private:
  std::array<uint64_t, 128> buckets_{};
  uint64_t count_ = 0;
  double sum_ = 0;
};

struct EngineMetrics {
  SchedulerStats scheduler;
  int64_t requests = 0, finished = 0, failed = 0, cancelled = 0;
  Histogram queue, ttft, inter_token, request, step, compute;  // compute: of a step, what the executor took

  std::map<std::string, double> by_name() const;
};

}  // namespace slipway
