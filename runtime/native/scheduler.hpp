// Decides, step by step, how many tokens of which sequences go through the plan.
//
// Order. Sequences rank by arrival + priority * ageing_s, lower first; ties by order of arrival, then sequence index. A step
// of priority is worth `ageing_s` seconds of waiting, so a request is overtaken only by those that arrive within
// (difference of priorities) * ageing_s after it: nothing starves. All decisions use this one fixed order: running sequences grow
// in it, waiting ones are admitted in it (the head is never bypassed), and victims of preemption are taken from its end. The first
// in order always gets its blocks, therefore every step makes progress and every request ends.
//
// A step: running decodes one token each; draft tokens for those that want them, unless more than
// speculation_max_sequences run; prefill chunks with what is left of the budget. A sequence holds blocks for all its known
// tokens from admission on. A prefix that several have in common is computed once. Preemption gives a sequence's blocks up
// (the full ones stay in the tree until evicted) and computes again later; tokens already drawn are kept. A waiting
// sequence takes the place of running ones that rank behind it if that is enough to let it run.
//
// Draws depend on (seed, sequence index, output position) and logits alone, never on the schedule. Draft tokens
// are accepted while they equal the token drawn from the target's own row.
//
// Owned by the engine thread; no call is thread-safe. next() and commit() alternate, next_ahead() may come between them; add() and
// cancel() may come at any time: what a step in flight uses is let go at its commit. What a step that was begun ahead uses may be given to
// steps begun behind it, which must run behind it.
#pragma once
#include <cstdint>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "drafts.hpp"
#include "kv_cache.hpp"
#include "request.hpp"
#include "step_batch.hpp"

namespace slipway {

struct SchedulerConfig {
  int32_t num_blocks = 0, block_size = 32;
  int32_t vocab_size = 0;
  int32_t max_sequence_length = 0;      // prompt + output, tokens
  int32_t max_batch_tokens = 0;         // per step
  int32_t max_sequences = 0;            // running at once
  int32_t max_logit_rows = 0;           // per step
  int32_t max_queued_requests = 1024;   // waiting for their first step
  int32_t speculation_max_sequences = 8;
  double ageing_s = 10.0;
  std::vector<int32_t> eos_token_ids;
  uint64_t seed = 0;                    // requests without a seed get theirs from this one: make it random
};

struct SchedulerStats {
  int32_t running_sequences = 0, waiting_sequences = 0, unfinished_requests = 0;
  int32_t free_blocks = 0, cached_blocks = 0, owned_blocks = 0;
  // Since the start.
  int64_t steps = 0, steps_ahead = 0;                 // ahead: begun while another ran
  int64_t tokens_computed = 0, tokens_generated = 0;
  int64_t prompt_tokens = 0, cached_tokens = 0;      // of sequences before their first preemption
  int64_t drafted_tokens = 0, accepted_tokens = 0;
  int64_t preemptions = 0, refused_requests = 0, finished_requests = 0;
};

struct RequestGroup;

class Scheduler {
 public:
  // vocabulary: null for no text and no stop strings; drafts: null for no speculation. Both must outlive the scheduler.
  // Throws std::invalid_argument for a config that can serve nothing.
  Scheduler(SchedulerConfig config, const Vocabulary* vocabulary, DraftSource* drafts);
  ~Scheduler();
  Scheduler(const Scheduler&) = delete;

  std::optional<Refusal> add(Request request, double now_s);
  void cancel(uint64_t request_id, double now_s);   // unknown or finished ids are ignored

  // The next step, or null if there is nothing to compute. There may be events all the same: take_events(). Its constrained
  // slots must be given their masks before they are sampled.
  StepBatch* next(double now_s);
  // A step that can begin while the one in flight runs: for sequences whose next token that one draws, wherever it needs nothing else of
  // it. Null where the step in flight has to end first: somebody could be admitted, or a token decides more than what is read next.
  // Its token ids are ~row of the step in flight, and commit() of that makes it the one in flight.
  StepBatch* next_ahead(double now_s);
  // `sampled` has one entry a logit row. Returns all events since the last commit or take_events().
  std::vector<Event> commit(std::vector<Sampled> sampled, double now_s);
  // Instead of commit(), when the step could not be run: its sequences end with an error.
  std::vector<Event> fail(const std::string& message, double now_s);
  std::vector<Event> take_events();

  StepBatch* in_flight() { return in_flight_ ? step_ : nullptr; }  // the one that commit() is to be called for
  bool has_work() const { return !requests_.empty(); }
  SchedulerStats stats() const;
  const KvCache& kv() const { return kv_; }
  // Throws std::logic_error if blocks or sequences are lost or in two places.
  void check_integrity() const;

 private:
  struct ByRank {
    bool operator()(const Sequence* a, const Sequence* b) const;
  };
  using Ranked = std::set<Sequence*, ByRank>;

  // Into the queue and out of it: scheduler_admission.cpp.
  std::optional<Refusal> refusal(const Request& request) const;
  int32_t most_tokens() const;                        // of a sequence, by the model's limit and by the cache's size
  void add_sequence(RequestGroup& group, int32_t index, double now_s);
  void start_siblings(RequestGroup& group);
  void expire(double now_s);
  void admit_waiting(double now_s);
  bool could_admit() const;
  bool fits(const Sequence& waiting) const;
  bool make_room(const Sequence& waiting);
  void admit(Sequence& sequence, double now_s);

  // The step: scheduler_step.cpp.
  void grow_running();
  void preempt(Sequence& sequence);
  int64_t tokens_wanted() const;
  void add_decodes();
  void add_drafts(Sequence& sequence, int64_t spare);
  void add_prefills();
  void adopt_published(Sequence& sequence);

  // Its end: scheduler_commit.cpp.
  void commit_slot(const StepBatch::Slot& slot, std::span<Sampled> sampled, double now_s);
  std::optional<FinishReason> take_scores(Sequence& sequence, std::span<Sampled> scores, Event& event);
  std::optional<FinishReason> take_token(Sequence& sequence, Sampled& sampled, Event& event, double now_s);
  void finish(Sequence& sequence, FinishReason reason, Event event, double now_s);
  void end(Sequence& sequence, FinishReason reason, double now_s);  // at once, or with the step that it is in
  void end_step();
  void leave_ahead(const Sequence& sequence);

  const SchedulerConfig config_;
  const Vocabulary* const vocabulary_;
  DraftSource* const drafts_;
  KvCache kv_;
  std::unordered_map<uint64_t, std::unique_ptr<RequestGroup>> requests_;
  Ranked waiting_, running_;
  uint64_t num_added_ = 0;
  StepBatch steps_[2];
  StepBatch *step_ = &steps_[0], *ahead_ = &steps_[1];
  bool in_flight_ = false, ahead_in_flight_ = false;
  std::vector<Event> events_;
  SchedulerStats totals_;
};

}  // namespace slipway
