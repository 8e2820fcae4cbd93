// What goes into the next step.
#include <algorithm>
#include <stdexcept>
#include <unordered_set>
#include <utility>

#include "draws.hpp"
#include "scheduler.hpp"
#include "sequence.hpp"

namespace slipway {
namespace {

// Whether the step draws one token of the sequence, and nothing but that token is needed to go on.
bool draws_next_alone(const Sequence& sequence, const StepBatch::Slot& slot, int32_t vocab_size) {
  const SamplingParams& params = sequence.group->request.params;
  const bool draws_one = slot.num_rows == 1 && slot.num_scored == 0;
  return draws_one && !sequence.cancelled && !sequence.constraint && !sequence.on_host && params.speculate_tokens == 0 && draws_ahead(params, vocab_size);
}

}  // namespace

StepBatch* Scheduler::next(double now_s) {
  if (in_flight_) throw std::logic_error("scheduler: next() before the last step was committed");
  expire(now_s);
  grow_running();
  admit_waiting(now_s);
  step_->clear();
  add_decodes();
  add_prefills();
  if (step_->slots.empty()) return nullptr;
  step_->seal(config_.vocab_size);
  in_flight_ = true;
  ++totals_.steps;
  return step_;
}

StepBatch* Scheduler::next_ahead(double now_s) {
  if (!in_flight_ || ahead_in_flight_) throw std::logic_error("scheduler: next_ahead() without one step in flight");
  expire(now_s);
  const auto live = [](const StepBatch::Slot& slot) { return slot.sequence != nullptr; };
  if (could_admit() || std::cmp_not_equal(running_.size(), std::ranges::count_if(step_->slots, live))) return nullptr;
  const auto goes_on = [&](const StepBatch::Slot& slot) { return !live(slot) || draws_next_alone(*slot.sequence, slot, config_.vocab_size); };
  if (!std::ranges::all_of(step_->slots, goes_on)) return nullptr;
  ahead_->clear();
  for (const StepBatch::Slot& slot : step_->slots) {
    if (!live(slot)) continue;
    Sequence& sequence = *slot.sequence;
    if (sequence.metrics.output_tokens + 1 >= sequence.group->max_tokens) continue;  // it ends with the step in flight
    if (!kv_.grow(sequence.lease, sequence.num_known() + 1)) return nullptr;
    ahead_->append_drawn(sequence, slot.first_row);
  }
  if (ahead_->slots.empty()) return nullptr;
  ahead_->seal(config_.vocab_size);
  ahead_in_flight_ = true;
  ++totals_.steps;
  ++totals_.steps_ahead;
  return ahead_;
}

// Room for the token that each decode drew last. The first in rank can take from all others, so it always gets it.
void Scheduler::grow_running() {
  for (auto at = running_.begin(); at != running_.end(); ++at) {
    Sequence& sequence = **at;
    while (!kv_.grow(sequence.lease, sequence.num_known())) {
      Sequence& victim = **running_.rbegin();
      const bool itself = &victim == &sequence;
      preempt(victim);
      if (itself) return;
    }
  }
}

void Scheduler::preempt(Sequence& sequence) {
  kv_.release(sequence.lease);
  sequence.num_computed = 0;
  running_.erase(&sequence);
  waiting_.insert(&sequence);
  ++sequence.metrics.preemptions;
  ++totals_.preemptions;
}

int64_t Scheduler::tokens_wanted() const {
  int64_t wanted = 0;
  for (const Sequence* sequence : running_) wanted += sequence->num_uncomputed();
  return wanted;
}

void Scheduler::add_decodes() {
  std::vector<Sequence*> decodes;
  for (Sequence* sequence : running_)
    if (sequence->num_uncomputed() == 1) decodes.push_back(sequence);
  const auto room = static_cast<size_t>(std::min(config_.max_batch_tokens, config_.max_logit_rows));
  if (decodes.size() > room) decodes.resize(room);
  auto spare = static_cast<int64_t>(room - decodes.size());
  if (!drafts_ || running_.size() > static_cast<size_t>(config_.speculation_max_sequences)) spare = 0;
  for (Sequence* sequence : decodes) {
    add_drafts(*sequence, spare);
    spare -= sequence->num_drafts;
    step_->append(*sequence, 1 + sequence->num_drafts);
  }
}

// As many as the request wants, its output may still hold, and the step and the free blocks have room for.
void Scheduler::add_drafts(Sequence& sequence, int64_t spare) {
  const RequestGroup& group = *sequence.group;
  const int64_t output_left = group.max_tokens - sequence.metrics.output_tokens - 1;
  const auto most = static_cast<int32_t>(std::min({spare, output_left, int64_t{group.request.params.speculate_tokens}}));
  if (most <= 0) return;
  const int32_t known = sequence.num_known();
  std::vector<int32_t> drafts;
  drafts_->propose(sequence.tokens, most, drafts);
  const auto bad = std::ranges::find_if(drafts, [this](int32_t token) { return token < 0 || token >= config_.vocab_size; });
  auto count = std::min(most, static_cast<int32_t>(bad - drafts.begin()));
  while (count > 0 && !kv_.grow(sequence.lease, known + count)) --count;
  sequence.tokens.insert(sequence.tokens.end(), drafts.begin(), drafts.begin() + count);
  sequence.num_drafts = count;
  sequence.metrics.drafted_tokens += count;
  totals_.drafted_tokens += count;
}

// A prefix that several sequences have in common is computed by the first; the others adopt its blocks a step later.
void Scheduler::add_prefills() {
  std::unordered_set<uint64_t> under_way;
  for (Sequence* sequence : running_) {
    if (sequence->in_step) continue;
    adopt_published(*sequence);
    const int64_t next_block = int64_t{sequence->lease.num_published + 1} * config_.block_size;
    const auto next = kv_.unpublished_keys(sequence->lease, sequence->tokens, std::min<int64_t>(next_block, sequence->num_known() - 1));
    if (!next.empty() && under_way.contains(next.front())) continue;
    int32_t chunk = std::min(sequence->num_uncomputed(), config_.max_batch_tokens - step_->num_tokens());
    const int32_t rows_left = config_.max_logit_rows - step_->num_rows();
    chunk -= std::max(0, sequence->rows_wanted(chunk) - rows_left);  // its last tokens wait for free logit rows
    if (chunk <= 0) continue;
    step_->append(*sequence, chunk);
    const auto keys = kv_.unpublished_keys(sequence->lease, sequence->tokens, sequence->num_computed + chunk);
    under_way.insert(keys.begin(), keys.end());
  }
}

void Scheduler::adopt_published(Sequence& sequence) {
  const int32_t gained = kv_.adopt(sequence.lease, sequence.tokens) - sequence.num_computed;
  if (gained <= 0) return;
  sequence.num_computed += gained;
  if (sequence.metrics.preemptions > 0) return;
  sequence.metrics.cached_tokens += gained;
  totals_.cached_tokens += gained;
}

}  // namespace slipway
