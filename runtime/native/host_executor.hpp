// Replays a plan on the threads of a team.
//
// Everything a kernel is called with is resolved at load. A step of the engine allocates nothing, looks nothing up and
// takes no lock, ONNX segments apart; the team meets at its barrier after each step of the plan.
#pragma once
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "executor.hpp"
#include "library.hpp"
#include "memory.hpp"
#include "plan.hpp"
#include "slipway/abi.hpp"
#include "team.hpp"

namespace slipway {

class HostExecutor final : public Executor {
 public:
  // weights: one mapping each of the weights that steps number; kept for life.
  HostExecutor(const Plan& plan, std::vector<std::shared_ptr<const Mapping>> weights, Team& team);
  HostExecutor(const HostExecutor&) = delete;

  std::optional<std::string> begin(const Batch& batch) override;
  double computed_seconds() const override { return computed_seconds_; }
  float* logits(int32_t row) const override { return logits_.row<float>(row); }
  bool bring_memory() override;
  void run_segments_with(SegmentRunner segments) override { segments_ = std::move(segments); }
  std::byte* arena() const override { return arena_.data(); }
  size_t arena_bytes() const override { return arena_.size(); }
  void time_steps(bool on) override { timed_ = on; }
  const std::vector<double>& step_seconds() const override { return step_seconds_; }

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
  double computed_seconds_ = 0;
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
