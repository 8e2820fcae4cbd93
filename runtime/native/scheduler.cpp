#include "scheduler.hpp"

#include <algorithm>
#include <stdexcept>
#include <tuple>
#include <utility>

#include "sequence.hpp"

namespace slipway {

const char* name(FinishReason reason) {
  switch (reason) {
    case FinishReason::stop: return "stop";
    case FinishReason::length: return "length";
    case FinishReason::cancelled: return "cancelled";
    case FinishReason::deadline: return "deadline";
    case FinishReason::error: return "error";
  }
  return "error";
}

int32_t Sequence::num_to_score() const { return static_cast<int32_t>(group->request.prompt.size()) - 1; }

int32_t Sequence::rows_wanted(int32_t num_tokens) const {
  const int32_t end = num_computed + num_tokens;
  const int32_t scored = std::min(end, num_to_score()) - std::max(num_computed, num_scored);
  return std::max(scored, 0) + (end == static_cast<int32_t>(tokens.size()) ? 1 + num_drafts : 0);
}

std::vector<Sequence*> RequestGroup::unfinished() const {
  std::vector<Sequence*> result;
  for (const auto& sequence : sequences)
    if (!sequence->finished) result.push_back(sequence.get());
  return result;
}

bool Scheduler::ByRank::operator()(const Sequence* a, const Sequence* b) const {
  return std::tie(a->group->rank, a->group->order, a->index) < std::tie(b->group->rank, b->group->order, b->index);
}

Scheduler::Scheduler(SchedulerConfig config, const Vocabulary* vocabulary, DraftSource* drafts)
    : config_(std::move(config)), vocabulary_(vocabulary), drafts_(drafts), kv_(config_.num_blocks, config_.block_size) {
  const auto require = [](int32_t value, int32_t least, const char* field) {
    if (value < least)
      throw std::invalid_argument(std::string(field) + ": " + std::to_string(value) + ", expected at least " + std::to_string(least));
  };
  require(config_.num_blocks, 1, "num_blocks");
  require(config_.block_size, 1, "block_size");
  require(config_.vocab_size, 1, "vocab_size");
  require(config_.max_sequence_length, 2, "max_sequence_length");
  require(config_.max_batch_tokens, 1, "max_batch_tokens");
  require(config_.max_sequences, 1, "max_sequences");
  require(config_.max_logit_rows, 1, "max_logit_rows");
}

Scheduler::~Scheduler() = default;

void Scheduler::cancel(uint64_t request_id, double now_s) {
  const auto found = requests_.find(request_id);
  if (found == requests_.end()) return;
  for (Sequence* sequence : found->second->unfinished()) end(*sequence, FinishReason::cancelled, now_s);
}

std::vector<Event> Scheduler::take_events() { return std::exchange(events_, {}); }

SchedulerStats Scheduler::stats() const {
  SchedulerStats stats = totals_;
  stats.running_sequences = static_cast<int32_t>(running_.size());
  stats.waiting_sequences = static_cast<int32_t>(waiting_.size());
  stats.unfinished_requests = static_cast<int32_t>(requests_.size());
  stats.free_blocks = kv_.num_free();
  stats.cached_blocks = kv_.num_cached();
  stats.owned_blocks = kv_.num_owned();
  return stats;
}

void Scheduler::check_integrity() const {
  const auto require = [](bool holds, const char* what) {
    if (!holds) throw std::logic_error(std::string("scheduler: ") + what);
  };
  std::vector<const KvLease*> leases;
  size_t placed = 0;
  for (const auto& [id, group] : requests_) {
    const std::vector<Sequence*> unfinished = group->unfinished();
    require(!unfinished.empty() && static_cast<int32_t>(unfinished.size()) == group->num_unfinished, "a request is finished and still here");
    for (Sequence* sequence : unfinished) {
      const bool waits = waiting_.contains(sequence), runs = running_.contains(sequence);
      const bool held_back = !group->siblings_started && sequence->index > 0;
      require(waits + runs + held_back == 1, "a sequence is lost or in two places");
      require(runs || (sequence->lease.blocks.empty() && !sequence->in_step), "a sequence that does not run holds blocks");
      require(sequence->num_computed < sequence->num_known(), "a sequence has nothing left to compute");
      placed += waits + runs;
      leases.push_back(&sequence->lease);
    }
  }
  require(placed == waiting_.size() + running_.size(), "a finished sequence is still queued");
  require(running_.size() <= static_cast<size_t>(config_.max_sequences), "too many sequences run");
  kv_.check_integrity(leases);
}

}  // namespace slipway
