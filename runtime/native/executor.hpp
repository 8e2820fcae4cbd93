// Replays a plan: a ragged batch of tokens in, rows of logits out.
#pragma once
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "memory.hpp"
#include "plan.hpp"
#include "slipway/abi.hpp"
#include "team.hpp"

namespace slipway {

// Runs a segment, on rank 0 alone. `step` numbers the plan's steps; an error is a sentence.
using SegmentRunner = std::function<std::optional<std::string>(int32_t step, const Batch& batch)>;

class Executor {
 public:
  virtual ~Executor() = default;

  // Begins to compute the logits of `batch`, which must be within the limits; or the sentence of what failed. An executor that draws may
  // begin a second batch before the first is finished, that runs behind it.
  virtual std::optional<std::string> begin(const Batch& batch) = 0;
  virtual void finish() {}  // waits for the first batch that was begun and not finished
  std::optional<std::string> run(const Batch& batch) {
    auto error = begin(batch);
    if (!error) finish();
    return error;
  }
  // Of the last batch begun. Rows that it was to draw must be brought first.
  virtual float* logits(int32_t row) const = 0;
  virtual void bring_logits(std::span<const int32_t>) {}

  // Whether it draws tokens, of batches that say how. drawn: a row's token of the batch finished last, or one of what stands instead (batch.hpp).
  virtual bool draws() const { return false; }
  virtual int32_t drawn(int32_t) const { return left_to_host; }

  // Brings a little more of the memory that steps write into place, about a millisecond's worth; false if nothing is left to do.
  virtual bool bring_memory() { return false; }

  // For segments, before the first run: who runs them, and the memory they share with kernels.
  virtual void run_segments_with(SegmentRunner) {}
  virtual std::byte* arena() const { return nullptr; }
  virtual size_t arena_bytes() const { return 0; }

  virtual double computed_seconds() const { return 0; }  // that the batch finished last took to compute, on a GPU by its own clock

  virtual void time_steps(bool on) = 0;
  virtual const std::vector<double>& step_seconds() const = 0;  // of the last timed run
};

// The one for the plan's target. weights: one mapping each of the weights that steps number. Throws std::runtime_error with a sentence.
std::unique_ptr<Executor> make_executor(const Plan& plan, std::vector<std::shared_ptr<const Mapping>> weights, Team& team);

}  // namespace slipway
