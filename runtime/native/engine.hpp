// The engine thread: it alone owns the plan's memory, the KV cache and the schedule.
//
// Requests and cancellations come in through one mailbox, events go out through another; between them the thread runs one step
// after the other for as long as there is work, and sleeps when there is none. Every request ends with an event that has
// a finish reason. After stop() the thread ends: at once with an error for what is under way, or when that is done.
#pragma once
#include <atomic>
#include <chrono>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <unordered_map>
#include <variant>
#include <vector>

#include "detokenizer.hpp"
#include "draws.hpp"
#include "executor.hpp"
#include "mailbox.hpp"
#include "metrics.hpp"
#include "scheduler.hpp"
#include "team.hpp"

namespace slipway {

// How long each step of the plan took in one step of the engine.
struct StepTimes {
  int32_t num_tokens, num_seqs;
  std::vector<double> seconds;
};

class Engine {
 public:
  Engine(const Plan& plan, std::vector<std::shared_ptr<const Mapping>> weights, Vocabulary vocabulary,
         std::vector<int32_t> eos_tokens, int32_t num_threads, int32_t max_queued_requests);
  ~Engine();  // stops at once

  Executor& executor() { return *executor_; }  // before the first request

  // Any thread may call these.
  void submit(Request request);  // its deadline counts from now; throws std::runtime_error when closed or broken
  void cancel(uint64_t request);
  std::optional<std::vector<Event>> poll(double patience_s);  // none: stopped, and all events are out
  void stop(bool drain);
  std::optional<std::string> failure() const;  // why it serves no more, if nobody stopped it
  std::map<std::string, double> metrics() const;
  void record_step_times(bool on) { recording_ = on; }
  std::vector<StepTimes> take_step_times();

 private:
  enum class State { serving, draining, aborting };
  struct Submission {
    Request request;
    double arrival_s;
  };
  struct Cancellation {
    uint64_t request_id;
  };
  struct Wake {};
  using Command = std::variant<Submission, Cancellation, Wake>;
  // A step that the executor was given.
  struct InFlight {
    StepBatch* step;
    double started_s;
    bool recorded;
    std::optional<std::string> error;
  };

  double now_s() const;
  void serve();
  bool serve_once();
  void obey(Command& command);
  void begin(StepBatch& step);
  std::vector<Event> finish(const InFlight& step);
  void sample(StepBatch& step);
  void take_drawn(const StepBatch& step);
  void constrain(StepBatch& step);
  void record(const Batch& batch);
  void refuse(uint64_t request_id, Refusal refusal);
  void publish(std::vector<Event> events);
  void count(const Event& event);
  void give_up(const std::string& why);

  const std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
  const int32_t vocab_size_;
  const Vocabulary vocabulary_;
  Team team_;
  std::unique_ptr<Executor> executor_;
  PromptLookup drafts_;
  Scheduler scheduler_;
  std::vector<Sampler> samplers_;  // one a thread
  Draws draws_[2];                 // of steps in flight, which take turns, if the executor draws
  size_t num_begun_ = 0;
  std::optional<InFlight> in_flight_;
  double ended_s_ = 0;             // the last step
  std::vector<int32_t> wanted_;    // rows that are sampled here
  std::vector<float*> to_sample_;  // [rows] the logits of those, else null
  std::vector<Sampled> sampled_;
  Ticket next_row_, next_constrained_;

  Mailbox<Command> inbox_;
  Mailbox<Event> outbox_;
  std::atomic<State> state_{State::serving};
  std::atomic<bool> recording_{false};
  std::unordered_map<uint64_t, int32_t> unfinished_;  // request id -> sequences that have not ended

  mutable std::mutex books_;  // over what follows
  EngineMetrics metrics_;
  std::vector<StepTimes> step_times_;
  std::optional<std::string> failure_;

  std::thread thread_;
};

}  // namespace slipway
