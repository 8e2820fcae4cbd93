#include "gpu_executor.hpp"

#include <algorithm>
#include <bit>
#include <cstdlib>
#include <cstring>
#include <stdexcept>

#include "draws.hpp"

namespace slipway {
namespace {

constexpr size_t most_graphs = 128, piece = 16 << 20;

const CudaApi& api_of(const Plan& plan, int32_t workers) {
  return plan.device == Device::emulated_gpu ? emulated_cuda(plan.seed, workers) : cuda_driver();
}

size_t aligned(size_t bytes) { return (bytes + 255) / 256 * 256; }

// A step's numbers and arrays, at the limits.
size_t most_input_bytes(const Plan& plan) {
  const Limits& limits = plan.limits;
  const auto blocks = static_cast<size_t>((limits.max_sequence_length + plan.kv.block_size - 1) / plan.kv.block_size);
  const size_t tokens = aligned(4 * static_cast<size_t>(limits.max_batch_tokens)), seqs = static_cast<size_t>(limits.max_sequences);
  return aligned(sizeof(Batch)) + 2 * tokens + aligned(4 * (seqs + 1)) + aligned(4 * seqs) + aligned(4 * seqs * blocks) +
         aligned(4 * static_cast<size_t>(limits.max_logit_rows)) + aligned(sizeof(Draw) * static_cast<size_t>(limits.max_logit_rows)) +
         aligned(sizeof(LogitEdit) * most_edits);
}

int32_t power_of_two(int32_t count, int32_t limit) {
  return std::min(static_cast<int32_t>(std::bit_ceil(static_cast<uint32_t>(count))), limit);
}

// Powers of two, and from 128 on eighths between them: cuBLASLt multiplies all rows that a graph is for.
int32_t rows_of_graph(int32_t count, int32_t limit) {
  if (count <= 128) return power_of_two(count, limit);
  const auto step = static_cast<int32_t>(std::bit_floor(static_cast<uint32_t>(count - 1)) / 8);
  return std::min((count + step - 1) / step * step, limit);
}

unsigned blocks(const ExtentSpec& extent, int64_t rows, int64_t tokens, int64_t sequences) {
  using Of = ExtentSpec::Of;
  const int64_t count = extent.of == Of::rows ? rows : extent.of == Of::tokens ? tokens : extent.of == Of::sequences ? sequences : 0;
  return static_cast<unsigned>(extent.fixed + (extent.times * count + extent.per - 1) / extent.per + (extent.each_sequence ? sequences : 0));
}

}  // namespace

GpuExecutor::GpuExecutor(const Plan& plan, const std::vector<std::shared_ptr<const Mapping>>& weights, int32_t workers)
    : limits_(plan.limits),
      logits_(plan.logits),
      drawn_(plan.drawn),
      begins_early_(plan.begins_early),
      is_emulated_(plan.device == Device::emulated_gpu),
      is_blocking_(std::getenv("SLIPWAY_BLOCKING") != nullptr),
      gpu_(api_of(plan, workers)),
      arena_(gpu_, static_cast<size_t>(plan.arena_bytes), "activations"),
      kv_(gpu_, static_cast<size_t>(plan.kv.layers * plan.kv.block_bytes * plan.kv.num_blocks), "keys and values"),
      scratch_(gpu_, static_cast<size_t>(plan.shared_scratch_bytes), "scratch"),
      counters_(gpu_, static_cast<size_t>(4 * plan.counters), "counters"),
      inputs_(gpu_, most_input_bytes(plan), "a step's inputs"),
      results_(gpu_, static_cast<size_t>(plan.limits.max_logit_rows * plan.logits.row_bytes)),
      under_way_{new_under_way(plan), new_under_way(plan)},
      step_seconds_(plan.steps.size()) {
  for (const GpuBytes* zeroed : {&kv_, &counters_})
    if (zeroed->size()) gpu_.check(gpu_.api().fill(zeroed->at(), 0, zeroed->size(), gpu_.stream()), "zeros");
  upload(weights);
  for (const StepSpec& spec : plan.steps) steps_.push_back(resolve(spec, plan));
  if (std::any_of(steps_.begin(), steps_.end(), [](const Step& step) { return std::any_of(step.launches.begin(), step.launches.end(), is_matmul); }))
    matmuls_ = std::make_unique<Matmuls>(gpu_, is_emulated_);
  std::sort(lengths_.begin(), lengths_.end());
  for (size_t i = 0; i <= steps_.size(); ++i) events_.push_back(make_event(gpu_));
  gpu_.synchronize();
}

GpuExecutor::~GpuExecutor() {
  gpu_.api().set_current(gpu_.context());  // whichever thread lets the engine go
  gpu_.api().synchronize(gpu_.stream());
}

// Through two pieces of pinned memory: the GPU copies one while the next is read from the file.
void GpuExecutor::upload(const std::vector<std::shared_ptr<const Mapping>>& weights) {
  PinnedBytes pieces[2] = {{gpu_, piece}, {gpu_, piece}};
  const Owned<CuEvent> copied[2] = {make_event(gpu_), make_event(gpu_)};
  size_t number = 0;
  for (const auto& weight : weights) {
    const GpuBytes& to = weights_.emplace_back(gpu_, weight->size(), "weights");
    for (size_t begin = 0; begin < weight->size(); begin += piece, ++number) {
      const size_t bytes = std::min(piece, weight->size() - begin);
      if (number >= 2) gpu_.check(gpu_.api().wait_event(copied[number % 2].get()), "a copy of weights");
      std::memcpy(pieces[number % 2].data(), weight->data() + begin, bytes);
      gpu_.check(gpu_.api().copy_to_device(to.at() + begin, pieces[number % 2].data(), bytes, gpu_.stream()), "a copy of weights");
      gpu_.check(gpu_.api().record_event(copied[number % 2].get(), gpu_.stream()), "a copy of weights");
    }
  }
  gpu_.synchronize();
}

GpuExecutor::Step GpuExecutor::resolve(const StepSpec& spec, const Plan& plan) {
  Step step{.name = spec.name, .call = {}, .launches = {}};
  const auto operand = [&](const OperandSpec& of) { return Operand{arena_.data() + of.arena_offset, of.row_bytes}; };
  std::transform(spec.inputs.begin(), spec.inputs.end(), step.call.inputs, operand);
  std::transform(spec.outputs.begin(), spec.outputs.end(), step.call.outputs, operand);
  std::transform(spec.weights.begin(), spec.weights.end(), step.call.weights, [&](int32_t weight) { return weights_.at(static_cast<size_t>(weight)).data(); });
  step.call.batch = reinterpret_cast<const Batch*>(inputs_.data());
  if (spec.kv_layer) step.call.kv = kv_.data() + *spec.kv_layer * plan.kv.block_bytes * plan.kv.num_blocks;
  step.call.scratch = scratch_.data();
  step.call.counters = reinterpret_cast<uint32_t*>(counters_.data());
  step.call.counts_logit_rows = spec.logit_rows;
  for (const LaunchSpec& launch : spec.launches) {
    step.launches.push_back({launch.matmul ? nullptr : function(spec, launch), launch});
    if (std::find(lengths_.begin(), lengths_.end(), launch.min_new_tokens) == lengths_.end()) lengths_.push_back(launch.min_new_tokens);
  }
  return step;
}

CuFunction GpuExecutor::function(const StepSpec& step, const LaunchSpec& launch) {
  Owned<CuModule>& module = modules_[step.image];
  if (!module) module = load_module(gpu_, step.image);
  return find_function(gpu_, module.get(), launch.function, launch.shared_bytes);
}

GpuExecutor::UnderWay GpuExecutor::new_under_way(const Plan& plan) const {
  const int64_t token_bytes = plan.drawn ? plan.drawn->row_bytes : 1;
  return {{gpu_, inputs_.size()}, {gpu_, static_cast<size_t>(plan.limits.max_logit_rows * token_bytes)}, make_event(gpu_), make_event(gpu_)};
}

std::optional<std::string> GpuExecutor::begin(const Batch& batch) {
  if (begun_ - finished_ == 2) throw std::logic_error("a third step before the first was finished");
  gpu_.make_current();
  UnderWay& own = under_way(begun_++);
  gpu_.check(gpu_.api().record_event(own.begun.get(), gpu_.stream()), "an event");
  send(batch, own.sent);
  const Bucket bucket = bucket_of(batch);
  if (timed_)
    run_timed(bucket);
  else if (is_blocking_)
    run_blocking(bucket);
  else
    gpu_.check(gpu_.api().launch_graph(graph(bucket), gpu_.stream()), "a step");
  if (batch.draws && batch.num_logit_rows)
    gpu_.check(gpu_.api().copy_to_host(own.tokens.data(), arena_.at() + static_cast<CuDevicePtr>(drawn_->arena_offset),
                                       static_cast<size_t>(batch.num_logit_rows * drawn_->row_bytes), gpu_.stream()), "the tokens");
  for (int32_t row = 0; row < batch.num_logit_rows; ++row)
    if (!batch.draws || !batch.draws[row].on_device) bring(row);
  gpu_.check(gpu_.api().record_event(own.done.get(), gpu_.stream()), "an event");
  return std::nullopt;
}

void GpuExecutor::finish() {
  gpu_.make_current();
  const UnderWay& own = under_way(finished_++);
  gpu_.check(gpu_.api().wait_event(own.done.get()), is_emulated_ ? "a step" : "a step (with SLIPWAY_BLOCKING=1 it is named)");
  float milliseconds = 0;
  gpu_.check(gpu_.api().milliseconds(&milliseconds, own.begun.get(), own.done.get()), "an event");
  computed_seconds_ = milliseconds / 1e3;
}

void GpuExecutor::bring_logits(std::span<const int32_t> rows) {
  gpu_.make_current();
  for (const int32_t row : rows) bring(row);
  gpu_.synchronize();
}

int32_t GpuExecutor::drawn(int32_t row) const {
  int32_t token;
  std::memcpy(&token, under_way_[(finished_ - 1) % 2].tokens.data() + row * drawn_->row_bytes, sizeof token);
  return token;
}

// Starts to copy a row of logits to the host.
void GpuExecutor::bring(int32_t row) const {
  gpu_.check(gpu_.api().copy_to_host(results_.data() + row * logits_.row_bytes, arena_.at() + static_cast<CuDevicePtr>(logits_.arena_offset + row * logits_.row_bytes),
                                     static_cast<size_t>(logits_.row_bytes), gpu_.stream()), "the logits");
}

// All arrays behind each other, and in front of them the Batch that says where they are on the device.
void GpuExecutor::send(const Batch& batch, const PinnedBytes& through) {
  size_t end = aligned(sizeof(Batch));
  const auto put = [&]<class T>(const T* values, size_t count) {
    const size_t bytes = count * sizeof(T);
    if (end + bytes > through.size()) throw std::logic_error("a step beyond the engine's limits");
    if (count) std::memcpy(through.data() + end, values, bytes);
    const auto* there = reinterpret_cast<const T*>(inputs_.data() + end);
    end += aligned(bytes);
    return there;
  };
  const auto tokens = static_cast<size_t>(batch.num_tokens), seqs = static_cast<size_t>(batch.num_seqs);
  Batch sent = batch;
  sent.token_ids = put(batch.token_ids, tokens);
  sent.positions = put(batch.positions, tokens);
  sent.cu_seqlens = put(batch.cu_seqlens, seqs + 1);
  sent.kv_lens = put(batch.kv_lens, seqs);
  sent.block_table = put(batch.block_table, seqs * static_cast<size_t>(batch.max_blocks));
  sent.logit_rows = put(batch.logit_rows, static_cast<size_t>(batch.num_logit_rows));
  if (batch.draws && batch.num_logit_rows) {
    const Draw& last = batch.draws[batch.num_logit_rows - 1];
    sent.draws = put(batch.draws, static_cast<size_t>(batch.num_logit_rows));
    sent.edits = put(batch.edits, static_cast<size_t>(last.first_edit + last.num_edits));
  }
  if (drawn_) sent.drawn = {arena_.data() + drawn_->arena_offset, drawn_->row_bytes};
  std::memcpy(through.data(), &sent, sizeof sent);
  gpu_.check(gpu_.api().copy_to_device(inputs_.at(), through.data(), end, gpu_.stream()), "a step's inputs");
}

GpuExecutor::Bucket GpuExecutor::bucket_of(const Batch& batch) const {
  int32_t longest = 1;
  for (int32_t s = 0; s < batch.num_seqs; ++s) longest = std::max(longest, batch.cu_seqlens[s + 1] - batch.cu_seqlens[s]);
  const auto above = std::upper_bound(lengths_.begin(), lengths_.end(), longest);
  return {.tokens = rows_of_graph(batch.num_tokens, limits_.max_batch_tokens),
          .logit_rows = batch.num_logit_rows ? power_of_two(batch.num_logit_rows, limits_.max_logit_rows) : 0,
          .sequences = power_of_two(batch.num_seqs, limits_.max_sequences),
          .longest = above == lengths_.begin() ? 1 : *std::prev(above)};
}

CuGraphExec GpuExecutor::graph(const Bucket& bucket) {
  if (const auto found = graphs_.find(bucket); found != graphs_.end()) {
    uses_.splice(uses_.begin(), uses_, found->second.use);
    return found->second.exec.get();
  }
  if (graphs_.size() == most_graphs) {
    graphs_.erase(uses_.back());
    uses_.pop_back();
  }
  rehearse(bucket);
  Owned<CuGraphExec> exec = capture(gpu_, [&] {
    for (const Step& step : steps_) launch(step, bucket);
  });
  uses_.push_front(bucket);
  return graphs_.emplace(bucket, Graph{std::move(exec), uses_.begin()}).first->second.exec.get();
}

void GpuExecutor::rehearse(const Bucket& bucket) const {
  for (const Step& step : steps_)
    for (const Launch& each : step.launches)
      if (each.spec.matmul && takes_part(each.spec, rows_of(step, bucket), bucket)) matmuls_->rehearse(*each.spec.matmul, step.call, rows_of(step, bucket), step.name);
}

int32_t GpuExecutor::rows_of(const Step& step, const Bucket& bucket) { return step.call.counts_logit_rows ? bucket.logit_rows : bucket.tokens; }

bool GpuExecutor::takes_part(const LaunchSpec& spec, int32_t rows, const Bucket& bucket) {
  return rows >= spec.min_rows && rows <= spec.max_rows.value_or(rows) && bucket.sequences >= spec.min_sequences &&
         bucket.sequences <= spec.max_sequences.value_or(bucket.sequences) && bucket.longest >= spec.min_new_tokens;
}

void GpuExecutor::launch(const Step& step, const Bucket& bucket) const {
  const int32_t rows = rows_of(step, bucket);
  if (rows == 0) return;  // a chunk of a prompt wants no logits: nothing behind the gather has work
  bool launched = false;
  for (const auto& [function, spec] : step.launches) {
    if (!takes_part(spec, rows, bucket)) continue;
    launched = true;
    if (spec.matmul) {
      matmuls_->enqueue(*spec.matmul, step.call, rows, step.name);
      continue;
    }
    const auto extent = [&](int axis) { return blocks(spec.grid[axis], rows, bucket.tokens, bucket.sequences); };
    void* arguments[] = {const_cast<cuda::Call*>(&step.call)};
    CuLaunchAttribute early{.id = cuda_begins_early, .value = 1, .rest = {}};
    const CuLaunchConfig config{extent(0), extent(1), extent(2), static_cast<unsigned>(spec.threads), 1, 1,
                                static_cast<unsigned>(spec.shared_bytes), gpu_.stream(), &early, begins_early_ ? 1u : 0u};
    gpu_.check(gpu_.api().launch(&config, function, arguments, nullptr), step.name + " (" + spec.function + ")");
  }
  if (!launched) throw std::runtime_error("GPU: no launch of " + step.name + " is for " + std::to_string(rows) + " rows: the engine is damaged");
}

// Kernel after kernel, so that one that fails is known.
void GpuExecutor::run_blocking(const Bucket& bucket) const {
  for (const Step& step : steps_) {
    launch(step, bucket);
    gpu_.check(gpu_.api().synchronize(gpu_.stream()), step.name);
  }
}

void GpuExecutor::run_timed(const Bucket& bucket) {
  for (size_t i = 0; i < steps_.size(); ++i) {
    gpu_.check(gpu_.api().record_event(events_[i].get(), gpu_.stream()), "an event");
    launch(steps_[i], bucket);
  }
  gpu_.check(gpu_.api().record_event(events_.back().get(), gpu_.stream()), "an event");
  gpu_.synchronize();
  for (size_t i = 0; i < steps_.size(); ++i) {
    float milliseconds = 0;
    gpu_.check(gpu_.api().milliseconds(&milliseconds, events_[i].get(), events_[i + 1].get()), "an event");
    step_seconds_[i] = milliseconds / 1e3;
  }
}

}  // namespace slipway
