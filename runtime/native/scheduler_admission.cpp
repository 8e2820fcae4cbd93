// Into the queue, and from there among the running.
#include <algorithm>
#include <limits>

#include "philox.hpp"
#include "scheduler.hpp"
#include "sequence.hpp"

namespace slipway {

int32_t Scheduler::most_tokens() const {
  const int64_t cached = int64_t{config_.num_blocks} * config_.block_size + 1;  // the last token needs no place
  return static_cast<int32_t>(std::min<int64_t>(config_.max_sequence_length, cached));
}

std::optional<Refusal> Scheduler::refusal(const Request& request) const {
  using Reason = Refusal::Reason;
  if (auto problem = check(request.params, config_.vocab_size)) return Refusal{Reason::invalid, std::move(*problem)};
  if (request.prompt.empty()) return Refusal{Reason::invalid, "the prompt is empty, expected at least one token"};
  const auto fits_vocabulary = [this](int32_t token) { return token >= 0 && token < config_.vocab_size; };
  if (const auto bad = std::ranges::find_if_not(request.prompt, fits_vocabulary); bad != request.prompt.end())
    return Refusal{Reason::invalid, "the prompt holds token " + std::to_string(*bad) + ", expected 0.." + std::to_string(config_.vocab_size - 1)};
  if (requests_.contains(request.id)) return Refusal{Reason::invalid, "request id " + std::to_string(request.id) + " is in use"};
  if (request.prompt.size() >= static_cast<size_t>(most_tokens())) {
    const bool by_cache = most_tokens() < config_.max_sequence_length;
    return Refusal{Reason::too_long, "the prompt has " + std::to_string(request.prompt.size()) + " tokens, expected at most " +
                                         std::to_string(most_tokens() - 1) + (by_cache ? ": the whole KV cache holds no more" : ": max_sequence_length leaves no room for output")};
  }
  const auto queued = std::ranges::count_if(waiting_, [](const Sequence* s) { return !s->metrics.first_scheduled_s && s->index == 0; });
  if (queued >= config_.max_queued_requests)
    return Refusal{Reason::queue_full, "the queue is full: " + std::to_string(queued) + " requests wait"};
  return std::nullopt;
}

std::optional<Refusal> Scheduler::add(Request request, double now_s) {
  if (auto refused = refusal(request)) {
    ++totals_.refused_requests;
    return refused;
  }
  auto group = std::make_unique<RequestGroup>();
  const SamplingParams& params = request.params;
  const PhiloxCounter drawn = random_words(config_.seed, std::numeric_limits<uint32_t>::max(), num_added_);
  group->seed = params.seed.value_or(uint64_t{drawn[0]} << 32 | drawn[1]);
  group->rank = now_s + request.priority * config_.ageing_s;
  group->order = num_added_++;
  const int32_t room = most_tokens() - static_cast<int32_t>(request.prompt.size());
  group->max_tokens = std::min(params.max_tokens.value_or(room), room);
  group->ending_tokens = params.stop_token_ids;
  if (!params.ignore_eos)
    group->ending_tokens.insert(group->ending_tokens.end(), config_.eos_token_ids.begin(), config_.eos_token_ids.end());
  group->num_unfinished = params.n;
  group->request = std::move(request);
  if (group->request.params.prompt_logprobs) group->request.salt = uint64_t{drawn[2]} << 32 | drawn[3];  // what is cached has no logits
  for (int32_t index = 0; index < group->num_unfinished; ++index) add_sequence(*group, index, now_s);
  waiting_.insert(group->sequences.front().get());
  requests_.emplace(group->request.id, std::move(group));
  return std::nullopt;
}

void Scheduler::add_sequence(RequestGroup& group, int32_t index, double now_s) {
  const SamplingParams& params = group.request.params;
  auto sequence = std::make_unique<Sequence>();
  sequence->group = &group;
  sequence->index = index;
  sequence->tokens = group.request.prompt;
  if (!params.prompt_logprobs || index > 0) sequence->num_scored = sequence->num_to_score();
  if (uses_penalties(params)) sequence->penalties.emplace(group.request.prompt);
  if (vocabulary_) sequence->text.emplace(*vocabulary_, TextStream::Options{params.stop, params.include_stop, params.skip_special_tokens});
  if (group.request.grammar) sequence->constraint = group.request.grammar->start();
  sequence->metrics.arrival_s = now_s;
  sequence->metrics.prompt_tokens = static_cast<int32_t>(group.request.prompt.size());
  group.sequences.push_back(std::move(sequence));
}

void Scheduler::start_siblings(RequestGroup& group) {
  if (std::exchange(group.siblings_started, true)) return;
  for (Sequence* sequence : group.unfinished())
    if (sequence->index > 0) waiting_.insert(sequence);
}

void Scheduler::expire(double now_s) {
  std::vector<RequestGroup*> late;
  for (const Sequence* sequence : waiting_) {
    RequestGroup* group = sequence->group;
    if (group->request.deadline_s && now_s > *group->request.deadline_s && !group->sequences.front()->metrics.first_scheduled_s)
      late.push_back(group);
  }
  for (RequestGroup* group : late)
    for (Sequence* sequence : group->unfinished()) end(*sequence, FinishReason::deadline, now_s);
}

// Admits no more than this step has tokens for, in order of rank.
void Scheduler::admit_waiting(double now_s) {
  int64_t wanted = tokens_wanted();
  while (!waiting_.empty() && wanted < config_.max_batch_tokens) {
    Sequence& head = **waiting_.begin();
    if (!fits(head) && !make_room(head)) return;
    admit(head, now_s);
    wanted += head.num_uncomputed();
  }
}

// One block stays in reserve for each running sequence, so that admission does not lead straight to preemption.
bool Scheduler::fits(const Sequence& waiting) const {
  if (running_.size() >= static_cast<size_t>(config_.max_sequences)) return false;
  const int32_t spare = kv_.num_available() - static_cast<int32_t>(running_.size());
  if (spare < 1) return false;  // whatever it finds in the cache: cost() hashes all of its tokens, and this is asked every step
  return kv_.blocks_for(waiting.num_known()) <= spare || kv_.cost(waiting.tokens, waiting.group->request.salt) <= spare;
}

// Whether next() might admit one.
bool Scheduler::could_admit() const {
  if (waiting_.empty()) return false;
  const Sequence& head = **waiting_.begin();
  return running_.empty() || ByRank()(&head, *running_.rbegin()) || fits(head);
}

// Preempts sequences that rank behind `waiting`, last first, if that makes it fit.
bool Scheduler::make_room(const Sequence& waiting) {
  if (running_.empty() || !ByRank()(&waiting, *running_.rbegin())) return false;
  KvCache::Prospect prospect(kv_, waiting.tokens, waiting.group->request.salt);
  auto left = static_cast<int32_t>(running_.size());
  for (auto victim = running_.rbegin(); victim != running_.rend() && ByRank()(&waiting, *victim); ++victim) {
    prospect.release((*victim)->lease);
    if (--left < config_.max_sequences && left <= prospect.spare()) {
      while (running_.size() > static_cast<size_t>(left)) preempt(**running_.rbegin());
      return true;
    }
  }
  return false;
}

void Scheduler::admit(Sequence& sequence, double now_s) {
  waiting_.erase(&sequence);
  running_.insert(&sequence);
  sequence.num_computed = kv_.acquire(sequence.lease, sequence.tokens, sequence.group->request.salt);
  if (sequence.metrics.first_scheduled_s) return;
  sequence.metrics.first_scheduled_s = now_s;
  sequence.metrics.cached_tokens = sequence.num_computed;
  totals_.prompt_tokens += sequence.metrics.prompt_tokens;
  totals_.cached_tokens += sequence.num_computed;
}

}  // namespace slipway
