#include "metrics.hpp"

#include <algorithm>
#include <cmath>

namespace slipway {
namespace {

constexpr double first = 1e-6, per_doubling = 4;

double upper_end(size_t bucket) { return first * std::exp2(static_cast<double>(bucket) / per_doubling); }

}  // namespace

void Histogram::add(double seconds) {
  const double place = std::ceil(std::log2(std::max(seconds, first) / first) * per_doubling);
  ++buckets_[std::min(static_cast<size_t>(place), buckets_.size() - 1)];
  ++count_;
  sum_ += seconds;
}

double Histogram::quantile(double share) const {
  const double rank = share * static_cast<double>(count_);
  uint64_t seen = 0;
  for (size_t bucket = 0; bucket < buckets_.size(); ++bucket) {
    seen += buckets_[bucket];
    if (count_ > 0 && static_cast<double>(seen) >= rank) return upper_end(bucket);
  }
  return 0;
}

std::map<std::string, double> EngineMetrics::by_name() const {
  const SchedulerStats& s = scheduler;
  const std::pair<const char*, int64_t> numbers[] = {
      {"requests_total", requests}, {"requests_finished_total", finished}, {"requests_failed_total", failed},
      {"requests_cancelled_total", cancelled}, {"prompt_tokens_total", s.prompt_tokens}, {"cached_tokens_total", s.cached_tokens},
      {"computed_tokens_total", s.tokens_computed}, {"generated_tokens_total", s.tokens_generated},
      {"drafted_tokens_total", s.drafted_tokens}, {"accepted_tokens_total", s.accepted_tokens},
      {"preemptions_total", s.preemptions}, {"steps_total", s.steps}, {"steps_ahead_total", s.steps_ahead}, {"sequences_running", s.running_sequences},
      {"sequences_waiting", s.waiting_sequences}, {"kv_blocks_free", s.free_blocks}, {"kv_blocks_cached", s.cached_blocks},
      {"kv_blocks_owned", s.owned_blocks}};
  const std::pair<const char*, const Histogram*> histograms[] = {
      {"queue_seconds", &queue}, {"ttft_seconds", &ttft}, {"inter_token_seconds", &inter_token}, {"request_seconds", &request},
      {"step_seconds", &step}, {"compute_seconds", &compute}};
  std::map<std::string, double> result;
  for (const auto& [name, value] : numbers) result[name] = static_cast<double>(value);
  for (const auto& [name, histogram] : histograms) {
    result[std::string(name) + "_sum"] = histogram->sum();
    result[std::string(name) + "_count"] = static_cast<double>(histogram->count());
    for (const auto& [suffix, share] : {std::pair{"_p50", 0.5}, std::pair{"_p95", 0.95}, std::pair{"_p99", 0.99}})
      result[name + std::string(suffix)] = histogram->quantile(share);
  }
  return result;
}

}  // namespace slipway
