// What a step's tokens do to its sequences.
#include <algorithm>
#include <stdexcept>
#include <utility>

#include "scheduler.hpp"
#include "sequence.hpp"

namespace slipway {
namespace {

Event news_of(const Sequence& sequence) {
  Event event{};
  event.request_id = sequence.group->request.id;
  event.sequence_index = sequence.index;
  return event;
}

}  // namespace

std::vector<Event> Scheduler::commit(std::vector<Sampled> sampled, double now_s) {
  if (!in_flight_) throw std::logic_error("scheduler: commit() without a step");
  if (sampled.size() != step_->rows.size()) throw std::logic_error("scheduler: commit() needs one entry a logit row");
  for (const StepBatch::Slot& slot : step_->slots) {
    if (!slot.sequence) continue;
    slot.sequence->in_step = false;
    commit_slot(slot, std::span(sampled).subspan(static_cast<size_t>(slot.first_row), static_cast<size_t>(slot.num_rows)), now_s);
  }
  end_step();
  return take_events();
}

std::vector<Event> Scheduler::fail(const std::string& message, double now_s) {
  if (!in_flight_) throw std::logic_error("scheduler: fail() without a step");
  for (const StepBatch::Slot& slot : step_->slots) {
    if (!slot.sequence) continue;
    slot.sequence->in_step = false;
    Event event = news_of(*slot.sequence);
    event.error = message;
    finish(*slot.sequence, FinishReason::error, std::move(event), now_s);
  }
  end_step();
  return take_events();
}

void Scheduler::end_step() {
  step_->clear();
  in_flight_ = std::exchange(ahead_in_flight_, false);
  if (!in_flight_) return;
  std::swap(step_, ahead_);
  step_->take_drawn();
  for (const StepBatch::Slot& slot : step_->slots)
    if (slot.sequence) slot.sequence->in_step = true;
}

void Scheduler::leave_ahead(const Sequence& sequence) {
  if (!ahead_in_flight_) return;
  for (StepBatch::Slot& slot : ahead_->slots)
    if (slot.sequence == &sequence) slot.sequence = nullptr;
}

void Scheduler::commit_slot(const StepBatch::Slot& slot, std::span<Sampled> sampled, double now_s) {
  Sequence& sequence = *slot.sequence;
  RequestGroup& group = *sequence.group;
  const auto known = sequence.tokens.end() - sequence.num_drafts;
  const std::vector<int32_t> drafts(known, sequence.tokens.end());
  sequence.tokens.erase(known, sequence.tokens.end());
  sequence.num_drafts = 0;
  sequence.num_computed += slot.num_tokens - slot.num_drafts;
  totals_.tokens_computed += slot.num_tokens;

  const bool again = !sampled.empty() && sampled.back().again;
  sequence.on_host |= again;
  if (again && !sequence.cancelled) {
    --sequence.num_computed;
    leave_ahead(sequence);
    return;
  }
  Event event = news_of(sequence);
  std::optional<FinishReason> reason;
  if (sequence.cancelled) reason = FinishReason::cancelled;
  if (!reason) reason = take_scores(sequence, sampled.first(static_cast<size_t>(slot.num_scored)), event);
  sampled = sampled.subspan(static_cast<size_t>(slot.num_scored));
  for (size_t i = 0; i < sampled.size() && !reason; ++i) {
    reason = take_token(sequence, sampled[i], event, now_s);
    if (reason || i == drafts.size() || sequence.tokens.back() != drafts[i]) break;
    ++sequence.num_computed;  // the draft was right: its keys and values are in place, and its row's token follows
    ++sequence.metrics.accepted_tokens;
    ++totals_.accepted_tokens;
  }
  if (!event.tokens.empty()) event.prompt_logprobs = std::exchange(sequence.prompt_logprobs, {});
  kv_.publish(sequence.lease, sequence.tokens, sequence.num_computed);
  if (!sampled.empty()) start_siblings(group);
  if (reason) {
    finish(sequence, *reason, std::move(event), now_s);
  } else if (!event.tokens.empty()) {
    event.metrics = sequence.metrics;
    events_.push_back(std::move(event));
  }
}

std::optional<FinishReason> Scheduler::take_token(Sequence& sequence, Sampled& sampled, Event& event, double now_s) {
  if (sampled.error) {
    event.error = std::move(*sampled.error);
    return FinishReason::error;
  }
  const RequestGroup& group = *sequence.group;
  const SamplingParams& params = group.request.params;
  const int32_t token = sampled.token;
  sequence.tokens.push_back(token);
  if (sequence.penalties) sequence.penalties->add_output(token);
  if (!sequence.metrics.first_token_s) sequence.metrics.first_token_s = now_s;
  ++sequence.metrics.output_tokens;
  ++totals_.tokens_generated;
  event.tokens.push_back({token, sampled.logprob, std::move(sampled.top)});

  const bool ends = std::ranges::find(group.ending_tokens, token) != group.ending_tokens.end();
  const bool may_stop = sequence.metrics.output_tokens > params.min_tokens;
  const bool stopped = sequence.text && (!ends || params.include_stop) && sequence.text->push(token, event.text, may_stop);
  if (ends || stopped || (sequence.constraint && sequence.constraint->take(token))) return FinishReason::stop;
  if (sequence.metrics.output_tokens >= group.max_tokens) return FinishReason::length;
  return std::nullopt;
}

std::optional<FinishReason> Scheduler::take_scores(Sequence& sequence, std::span<Sampled> scores, Event& event) {
  for (Sampled& score : scores) {
    if (score.error) {
      event.error = std::move(*score.error);
      return FinishReason::error;
    }
    sequence.prompt_logprobs.push_back({score.token, score.logprob, std::move(score.top)});
    ++sequence.num_scored;
  }
  return std::nullopt;
}

void Scheduler::end(Sequence& sequence, FinishReason reason, double now_s) {
  if (sequence.in_step)
    sequence.cancelled = true;
  else
    finish(sequence, reason, news_of(sequence), now_s);
}

void Scheduler::finish(Sequence& sequence, FinishReason reason, Event event, double now_s) {
  RequestGroup& group = *sequence.group;
  leave_ahead(sequence);
  if (sequence.text) sequence.text->finish(event.text);
  sequence.finished = true;
  sequence.metrics.finished_s = now_s;
  event.finish = reason;
  event.metrics = sequence.metrics;
  events_.push_back(std::move(event));
  kv_.release(sequence.lease);
  running_.erase(&sequence);
  waiting_.erase(&sequence);
  if (sequence.index == 0 && reason != FinishReason::deadline) start_siblings(group);
  if (--group.num_unfinished > 0) return;
  ++totals_.finished_requests;
  requests_.erase(group.request.id);
}

}  // namespace slipway
