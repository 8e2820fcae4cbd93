// Replays a plan on a GPU, or on an emulated one: a CUDA graph for each bucket of steps.
//
// A graph is captured for numbers of tokens, wanted logit rows and sequences, few different ones, when a step first needs it; the
// step's real numbers, and all it is about, lie in one piece of device memory that is copied before the graph is launched. Launches
// that only steps with longer sequences need are in graphs of their own. The graphs used longest ago are let go.
#pragma once
#include <list>
#include <map>
#include <memory>

#include "executor.hpp"
#include "gpu.hpp"
#include "matmuls.hpp"
#include "slipway/cuda/call.hpp"

namespace slipway {

class GpuExecutor final : public Executor {
 public:
  // The weights are copied to the GPU. workers: host threads that emulate it.
  GpuExecutor(const Plan& plan, const std::vector<std::shared_ptr<const Mapping>>& weights, int32_t workers);
  ~GpuExecutor() override;

  // Throws std::runtime_error where the GPU fails: it computes no more after that.
  std::optional<std::string> begin(const Batch& batch) override;
  void finish() override;
  double computed_seconds() const override { return computed_seconds_; }
  float* logits(int32_t row) const override { return reinterpret_cast<float*>(results_.data() + row * logits_.row_bytes); }
  void bring_logits(std::span<const int32_t> rows) override;
  bool draws() const override { return drawn_.has_value(); }
  int32_t drawn(int32_t row) const override;
  void time_steps(bool on) override { timed_ = on; }
  const std::vector<double>& step_seconds() const override { return step_seconds_; }

 private:
  struct Launch {
    CuFunction function;  // null: cuBLASLt's
    LaunchSpec spec;
  };
  struct Step {
    std::string name;
    cuda::Call call;
    std::vector<Launch> launches;
  };
  static bool is_matmul(const Launch& launch) { return launch.spec.matmul.has_value(); }
  // Of a step, as graphs tell steps apart. longest: at least so many new tokens has some sequence.
  struct Bucket {
    int32_t tokens, logit_rows, sequences, longest;
    auto operator<=>(const Bucket&) const = default;
  };
  struct Graph {
    Owned<CuGraphExec> exec;
    std::list<Bucket>::iterator use;
  };

  // What a batch under way occupies on the host.
  struct UnderWay {
    PinnedBytes sent, tokens;  // its numbers and arrays; tokens drawn
    Owned<CuEvent> begun, done;
  };

  UnderWay new_under_way(const Plan& plan) const;
  UnderWay& under_way(uint64_t number) { return under_way_[number % 2]; }
  Step resolve(const StepSpec& spec, const Plan& plan);
  CuFunction function(const StepSpec& step, const LaunchSpec& launch);
  void upload(const std::vector<std::shared_ptr<const Mapping>>& weights);
  void send(const Batch& batch, const PinnedBytes& through);
  void bring(int32_t row) const;
  Bucket bucket_of(const Batch& batch) const;
  CuGraphExec graph(const Bucket& bucket);
  void rehearse(const Bucket& bucket) const;
  static int32_t rows_of(const Step& step, const Bucket& bucket);
  static bool takes_part(const LaunchSpec& spec, int32_t rows, const Bucket& bucket);
  void launch(const Step& step, const Bucket& bucket) const;
  void run_timed(const Bucket& bucket);
  void run_blocking(const Bucket& bucket) const;

  const Limits limits_;
  const OperandSpec logits_;
  const std::optional<OperandSpec> drawn_;
  const bool begins_early_, is_emulated_, is_blocking_;
  Gpu gpu_;
  std::vector<GpuBytes> weights_;
  GpuBytes arena_, kv_, scratch_, counters_, inputs_;
  PinnedBytes results_;        // logits, of the batch begun last
  UnderWay under_way_[2];      // batches take turns
  uint64_t begun_ = 0, finished_ = 0;
  std::unique_ptr<Matmuls> matmuls_;  // if there are any
  std::map<std::string, Owned<CuModule>> modules_;
  std::vector<int32_t> lengths_;  // that launches ask for, of the longest sequence's new tokens
  std::vector<Step> steps_;
  std::map<Bucket, Graph> graphs_;
  std::list<Bucket> uses_;  // of graphs, the last use first
  bool timed_ = false;
  double computed_seconds_ = 0;
  std::vector<Owned<CuEvent>> events_;  // one before each step and one behind the last
  std::vector<double> step_seconds_;
};

}  // namespace slipway
