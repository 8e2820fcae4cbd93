// Replays a plan: a ragged batch of tokens in, rows of logits out.
//
// Everything a kernel is called with is resolved at load. A step of the engine allocates nothing, looks nothing up and
// takes no lock, ONNX segments apart; the team meets at its barrier after each step of the plan.
#pragma once
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "library.hpp"
#include "memory.hpp"
#include "plan.hpp"
#include "slipway/abi.hpp"
#include "team.hpp"

namespace slipway {

// Runs a segment, on rank 0 alone. `step` numbers the plan's steps; an error is a sentence.
using SegmentRunner = std::function<std::optional<std::string>(int32_t step, const Batch& batch)>;

class Executor {
 public:
  // weights: one mapping each of the weights that steps number; kept for life.
  Executor(const Plan& plan, std::vector<std::shared_ptr<const Mapping>> weights, Team& team);
  Executor(const Executor&) = delete;
  void run_segments_with(SegmentRunner segments) { segments_ = std::move(segments); }  // before the first run

  // The logits of `batch`, or the sentence of a segment that failed. The batch must be within the limits.
  std::optional<std::string> run(const Batch& batch);
  float* logits(int32_t row) const { return logits_.row<float>(row); }

  // Brings a little more of the memory that steps write into place, about a millisecond's worth; false if nothing is left to do.
  bool bring_memory();

  std::byte* arena() const { return arena_.data(); }
  size_t arena_bytes() const { return arena_.size(); }
  void time_steps(bool on) { timed_ = on; }
  const std::vector<double>& step_seconds() const { return step_seconds_; }  // of the last timed run

 private:
  struct Step {
    Kernel kernel;  // null: a segment
    bool logit_rows;
    std::vector<Operand> operands;  // inputs, then outputs
    std::vector<const std::byte*> weights;
    std::byte* kv;
    size_t num_inputs;
  };

  Step resolve(const StepSpec& spec, const Plan& plan) const;
  void prepare_calls();
  Operand operand(const OperandSpec& spec) const { return {arena_.data() + spec.arena_offset, spec.row_bytes}; }
  void replay(int32_t rank);
  void run_segment(size_t step);

  std::vector<std::shared_ptr<const Mapping>> weights_;
  Library library_;
  Team& team_;
  SegmentRunner segments_;
  Mapping arena_, kv_, shared_, local_;
  std::vector<const Mapping*> to_bring_;  // the last is next, from brought_ on
  size_t brought_ = 0;
  int64_t local_bytes_;
  Operand logits_;
  std::vector<Step> steps_;
  std::vector<Ticket> tickets_;           // [steps][tickets_per_call]
  std::vector<std::vector<Call>> calls_;  // [rank][step]; each rank touches only its own
  Batch batch_{};
  std::optional<std::string> error_;
  bool timed_ = false;
  std::vector<double> step_seconds_;
};

}  // namespace slipway
