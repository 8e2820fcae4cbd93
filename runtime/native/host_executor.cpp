#include "host_executor.hpp"

#include <chrono>
#include <cstring>

namespace slipway {
namespace {

constexpr int64_t line = 64;
constexpr size_t brought_at_once = 2 << 20;  // a huge page

size_t rounded(int64_t bytes) { return static_cast<size_t>((bytes + line - 1) / line * line); }

bool has_kernels(const Plan& plan) {
  for (const StepSpec& step : plan.steps)
    if (!step.symbol.empty()) return true;
  return false;
}

double seconds(std::chrono::steady_clock::duration time) { return std::chrono::duration<double>(time).count(); }

}  // namespace

HostExecutor::HostExecutor(const Plan& plan, std::vector<std::shared_ptr<const Mapping>> weights, Team& team)
    : weights_(std::move(weights)),
      library_(has_kernels(plan) ? Library(plan.library) : Library()),
      team_(team),
      arena_(Mapping::zeros(rounded(plan.arena_bytes))),
      kv_(Mapping::zeros(rounded(plan.kv.layers * plan.kv.block_bytes * plan.kv.num_blocks))),
      shared_(Mapping::zeros(rounded(plan.shared_scratch_bytes))),
      local_(Mapping::zeros(rounded(plan.local_scratch_bytes) * static_cast<size_t>(team.size()))),
      to_bring_{&kv_, &local_, &shared_, &arena_},
      local_bytes_(static_cast<int64_t>(rounded(plan.local_scratch_bytes))),
      logits_(operand(plan.logits)),
      tickets_(plan.steps.size() * tickets_per_call),
      step_seconds_(plan.steps.size()) {
  for (const StepSpec& spec : plan.steps) steps_.push_back(resolve(spec, plan));
  prepare_calls();
}

HostExecutor::Step HostExecutor::resolve(const StepSpec& spec, const Plan& plan) const {
  Step step{.kernel = spec.symbol.empty() ? nullptr : library_.kernel(spec.symbol), .logit_rows = spec.logit_rows,
            .operands = {}, .weights = {}, .kv = nullptr, .num_inputs = spec.inputs.size()};
  for (const OperandSpec& input : spec.inputs) step.operands.push_back(operand(input));
  for (const OperandSpec& output : spec.outputs) step.operands.push_back(operand(output));
  for (const int32_t weight : spec.weights) step.weights.push_back(weights_.at(static_cast<size_t>(weight))->data());
  if (spec.kv_layer) step.kv = kv_.data() + *spec.kv_layer * plan.kv.block_bytes * plan.kv.num_blocks;
  return step;
}

void HostExecutor::prepare_calls() {
  for (int32_t rank = 0; rank < team_.size(); ++rank) {
    std::vector<Call>& calls = calls_.emplace_back();
    for (size_t i = 0; i < steps_.size(); ++i) {
      const Step& step = steps_[i];
      calls.push_back({.batch = &batch_, .rows = 0, .rank = rank, .size = team_.size(), .barrier = &team_.barrier(),
                       .tickets = &tickets_[i * tickets_per_call], .inputs = step.operands.data(),
                       .outputs = step.operands.data() + step.num_inputs, .weights = step.weights.data(), .kv = step.kv,
                       .shared = shared_.data(), .local = local_.data() + rank * local_bytes_});
    }
  }
}

bool HostExecutor::bring_memory() {
  while (!to_bring_.empty() && brought_ >= to_bring_.back()->size()) to_bring_.pop_back(), brought_ = 0;
  if (to_bring_.empty()) return false;
  if (!to_bring_.back()->populate_zeros(brought_, brought_at_once)) to_bring_.clear();  // then steps bring what they touch
  brought_ += brought_at_once;
  return true;
}

std::optional<std::string> HostExecutor::begin(const Batch& batch) {
  batch_ = batch;
  error_.reset();
  for (Ticket& ticket : tickets_) ticket.next.store(0, std::memory_order_relaxed);
  const auto started = std::chrono::steady_clock::now();
  team_.run([this](int32_t rank) { replay(rank); });
  computed_seconds_ = seconds(std::chrono::steady_clock::now() - started);
  return error_;
}

void HostExecutor::replay(int32_t rank) {
  std::vector<Call>& calls = calls_[static_cast<size_t>(rank)];
  const bool timed = timed_ && rank == 0;
  auto started = std::chrono::steady_clock::now();
  for (size_t i = 0; i < steps_.size(); ++i) {
    Call& call = calls[i];
    call.rows = steps_[i].logit_rows ? batch_.num_logit_rows : batch_.num_tokens;
    if (call.rows == 0) {  // a chunk of a prompt wants no logits: nothing behind the gather has work
      if (timed) step_seconds_[i] = 0;
      continue;
    }
    if (steps_[i].kernel)
      steps_[i].kernel(call);
    else if (rank == 0)
      run_segment(i);
    call.sync();
    if (timed) {
      const auto now = std::chrono::steady_clock::now();
      step_seconds_[i] = seconds(now - started);
      started = now;
    }
  }
}

void HostExecutor::run_segment(size_t step) {
  if (error_) return;  // what it would read was not made
  error_ = segments_ ? segments_(static_cast<int32_t>(step), batch_) : std::optional<std::string>("no runner for segments");
}

}  // namespace slipway
