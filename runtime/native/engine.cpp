#include "engine.hpp"

#include <pthread.h>

#include <algorithm>
#include <random>
#include <stdexcept>
#include <utility>

#include "request_times.hpp"

namespace slipway {
namespace {

constexpr double idle_patience_s = 3600;
constexpr size_t most_step_times = 4096;

SchedulerConfig scheduler_config(const Plan& plan, std::vector<int32_t> eos_tokens, int32_t max_queued_requests) {
  SchedulerConfig config;
  config.num_blocks = plan.kv.num_blocks;
  config.block_size = plan.kv.block_size;
  config.vocab_size = plan.vocab_size;
  config.max_sequence_length = plan.limits.max_sequence_length;
  config.max_batch_tokens = plan.limits.max_batch_tokens;
  config.max_sequences = plan.limits.max_sequences;
  config.max_logit_rows = plan.limits.max_logit_rows;
  config.max_queued_requests = max_queued_requests;
  config.eos_token_ids = std::move(eos_tokens);
  std::random_device random;
  config.seed = uint64_t{random()} << 32 | random();
  return config;
}

}  // namespace

Engine::Engine(const Plan& plan, std::vector<std::shared_ptr<const Mapping>> weights, Vocabulary vocabulary,
               std::vector<int32_t> eos_tokens, int32_t num_threads, int32_t max_queued_requests)
    : vocab_size_(plan.vocab_size),
      vocabulary_(std::move(vocabulary)),
      team_(num_threads),
      executor_(make_executor(plan, std::move(weights), team_)),
      scheduler_(scheduler_config(plan, std::move(eos_tokens), max_queued_requests), &vocabulary_, &drafts_),
      draws_{Draws(vocab_size_), Draws(vocab_size_)} {
  for (int32_t rank = 0; rank < num_threads; ++rank) samplers_.emplace_back(vocab_size_);
  metrics_.scheduler = scheduler_.stats();
  thread_ = start_thread([this] { serve(); });
}

Engine::~Engine() {
  stop(false);
  thread_.join();
}

// The front ends' side

void Engine::submit(Request request) {
  {
    const std::lock_guard lock(books_);
    if (failure_) throw std::runtime_error("it has failed: " + *failure_);
  }
  const double arrival_s = now_s();
  if (request.deadline_s) *request.deadline_s += arrival_s;
  if (state_ != State::serving || !inbox_.put(Submission{std::move(request), arrival_s})) throw std::runtime_error("closed");
}

void Engine::cancel(uint64_t request) { inbox_.put(Cancellation{request}); }

std::optional<std::vector<Event>> Engine::poll(double patience_s) {
  std::vector<Event> events = outbox_.take(std::chrono::duration<double>(patience_s));
  if (events.empty() && outbox_.ended()) return std::nullopt;
  return events;
}

void Engine::stop(bool drain) {
  if (drain) {
    State serving = State::serving;
    state_.compare_exchange_strong(serving, State::draining);
  } else {
    state_ = State::aborting;
  }
  inbox_.put(Wake{});
}

std::optional<std::string> Engine::failure() const {
  const std::lock_guard lock(books_);
  return failure_;
}

std::map<std::string, double> Engine::metrics() const {
  const std::lock_guard lock(books_);
  return metrics_.by_name();
}

std::vector<StepTimes> Engine::take_step_times() {
  const std::lock_guard lock(books_);
  return std::exchange(step_times_, {});
}

double Engine::now_s() const { return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count(); }

// The engine thread's side

void Engine::serve() {
  pthread_setname_np(pthread_self(), "slipway-engine");
  const OwnCore core(0, team_.size());
  std::string why = "the engine was closed";
  try {
    while (serve_once()) {}
  } catch (const std::exception& error) {  // a bug of ours: the books can no longer be trusted
    why = error.what();
    const std::lock_guard lock(books_);
    failure_ = why;
  }
  give_up(why);
}

bool Engine::serve_once() {
  const bool idle = !in_flight_ && !scheduler_.has_work() && state_ == State::serving;
  const bool sleeps = idle && !executor_->bring_memory();
  for (Command& command : inbox_.take(std::chrono::duration<double>(sleeps ? idle_patience_s : 0))) obey(command);
  if (state_ == State::aborting || (state_ == State::draining && !scheduler_.has_work())) return false;
  if (!in_flight_)
    if (StepBatch* step = scheduler_.next(now_s())) begin(*step);
  std::vector<Event> events;
  if (const std::optional<InFlight> step = std::exchange(in_flight_, std::nullopt)) {
    if (executor_->draws() && !step->recorded)
      if (StepBatch* ahead = scheduler_.next_ahead(now_s())) begin(*ahead);
    events = finish(*step);
  } else {
    events = scheduler_.take_events();
    if (events.empty() && scheduler_.has_work()) throw std::logic_error("the scheduler has requests and runs none of them");
  }
  for (const Event& event : events)
    if (event.finish == FinishReason::error) scheduler_.cancel(event.request_id, now_s());  // its other sequences
  {
    const std::lock_guard lock(books_);
    metrics_.scheduler = scheduler_.stats();
  }
  publish(std::move(events));
  return true;
}

void Engine::obey(Command& command) {
  if (auto* cancellation = std::get_if<Cancellation>(&command)) scheduler_.cancel(cancellation->request_id, now_s());
  auto* submission = std::get_if<Submission>(&command);
  if (!submission) return;
  const uint64_t id = submission->request.id;
  unfinished_[id] = submission->request.params.n;
  {
    const std::lock_guard lock(books_);
    ++metrics_.requests;
  }
  if (auto refusal = scheduler_.add(std::move(submission->request), submission->arrival_s)) refuse(id, std::move(*refusal));
}

void Engine::refuse(uint64_t request_id, Refusal refusal) {
  Event event{.request_id = request_id, .sequence_index = 0, .tokens = {}, .prompt_logprobs = {}, .text = {}, .finish = FinishReason::error,
              .error = std::move(refusal.message), .metrics = {}};
  std::vector<Event> events;
  events.push_back(std::move(event));
  publish(std::move(events));
}

void Engine::begin(StepBatch& step) {
  in_flight_ = {.step = &step, .started_s = now_s(), .recorded = recording_, .error = std::nullopt};
  if (executor_->draws()) {
    Draws& draws = draws_[num_begun_++ % 2];
    draws.clear();
    for (const SampleContext& row : step.rows) draws.add(row);
    step.batch.draws = draws.draws().data();
    step.batch.edits = draws.edits().data();
  }
  executor_->time_steps(in_flight_->recorded);
  in_flight_->error = executor_->begin(step.batch);
}

std::vector<Event> Engine::finish(const InFlight& in_flight) {
  if (in_flight.error) return scheduler_.fail(*in_flight.error, now_s());
  executor_->finish();
  if (in_flight.recorded) record(in_flight.step->batch);
  sample(*in_flight.step);
  const double ended_s = now_s();
  {
    const std::lock_guard lock(books_);
    metrics_.step.add(ended_s - std::max(in_flight.started_s, ended_s_));
    metrics_.compute.add(executor_->computed_seconds());
  }
  ended_s_ = ended_s;
  return scheduler_.commit(std::exchange(sampled_, {}), ended_s);
}

// A row whose grammar failed has its error in sampled_ and is not drawn from.
void Engine::constrain(StepBatch& step) {
  const auto count = static_cast<int64_t>(step.constrained.size());
  next_constrained_.next = 0;
  const auto work = [&](int32_t) {
    for (int64_t next; (next = next_constrained_.claim(1)) < count;) {
      const auto index = static_cast<size_t>(next);
      const auto error = step.constrain(index);
      const StepBatch::Slot& slot = step.slots[step.constrained[index].slot];
      for (int32_t row = 0; error && row < slot.num_rows; ++row) sampled_[static_cast<size_t>(slot.first_row + row)].error = error;
    }
  };
  if (count > 1)
    team_.run(work);
  else
    work(0);
}

// Rows that the executor has drawn; the others are to be sampled.
void Engine::take_drawn(const StepBatch& step) {
  to_sample_.assign(step.rows.size(), nullptr);
  wanted_.clear();
  for (size_t row = 0; row < step.rows.size(); ++row) {
    if (!step.rows[row].params) continue;  // its sequence left
    const auto number = static_cast<int32_t>(row);
    const int32_t drawn = executor_->draws() ? executor_->drawn(number) : left_to_host;
    if (drawn >= 0)
      sampled_[row].token = drawn;
    else if (drawn != left_to_host)
      sampled_[row].error = drawn == drew_invalid_edits ? invalid_edits : invalid_logits;
    else if (in_flight_)
      sampled_[row].again = true;  // its logits may have been overwritten
    else if (!sampled_[row].error)
      wanted_.push_back(number);
  }
  if (!wanted_.empty()) executor_->bring_logits(wanted_);
  for (const int32_t row : wanted_) to_sample_[static_cast<size_t>(row)] = executor_->logits(row);
}

void Engine::sample(StepBatch& step) {
  sampled_.assign(step.rows.size(), {});
  if (!step.constrained.empty()) constrain(step);
  take_drawn(step);
  const auto num_rows = static_cast<int64_t>(step.rows.size());
  next_row_.next = 0;
  const auto work = [&](int32_t rank) {
    for (int64_t row; (row = next_row_.claim(1)) < num_rows;) {
      const auto at = static_cast<size_t>(row);
      if (!to_sample_[at]) continue;
      const bool edited = step.batch.draws && step.batch.draws[at].on_device;
      sampled_[at] = samplers_[static_cast<size_t>(rank)].sample({to_sample_[at], static_cast<size_t>(vocab_size_)}, step.rows[at], edited);
    }
  };
  if (wanted_.size() > 1)
    team_.run(work);
  else
    work(0);
}

void Engine::record(const Batch& batch) {
  const std::lock_guard lock(books_);
  if (step_times_.size() < most_step_times) step_times_.push_back({batch.num_tokens, batch.num_seqs, executor_->step_seconds()});
}

void Engine::publish(std::vector<Event> events) {
  for (const Event& event : events) count(event);
  outbox_.put_all(std::move(events));
}

void Engine::count(const Event& event) {
  if (!event.finish) return;
  const bool failed = event.finish == FinishReason::error;
  const std::lock_guard lock(books_);
  if (event.metrics.first_token_s) {
    const RequestTimes times(event.metrics);
    metrics_.queue.add(times.queue_s);
    metrics_.ttft.add(times.ttft_s);
    metrics_.request.add(times.total_s);
    if (event.metrics.output_tokens > 1) metrics_.inter_token.add(times.inter_token_s);
  }
  const auto entry = unfinished_.find(event.request_id);
  if (entry == unfinished_.end()) return;
  if (!failed && --entry->second > 0) return;
  ++(failed ? metrics_.failed : event.finish == FinishReason::cancelled ? metrics_.cancelled : metrics_.finished);
  unfinished_.erase(entry);
}

// Ends every request there is or that is still coming in, and both mailboxes. The scheduler may be what broke: it is left alone.
void Engine::give_up(const std::string& why) {
  inbox_.close();
  for (const Command& command : inbox_.take({}))
    if (const auto* submission = std::get_if<Submission>(&command)) unfinished_[submission->request.id] = 1;
  std::vector<Event> events;
  for (const auto& [id, sequences] : unfinished_)
    events.push_back({.request_id = id, .sequence_index = 0, .tokens = {}, .prompt_logprobs = {}, .text = {}, .finish = FinishReason::error, .error = why, .metrics = {}});
  publish(std::move(events));
  outbox_.close();
}

}  // namespace slipway
