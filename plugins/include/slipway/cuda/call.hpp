// What every CUDA kernel of a plan is called with, by value; the runtime bakes it into a CUDA graph.
#pragma once
#include "slipway/batch.hpp"

namespace slipway::cuda {

inline constexpr uint32_t abi_version = 1;
inline constexpr int max_inputs = 4, max_outputs = 2, max_weights = 6;

// Pointers are the device's. A graph is captured for at least as many rows as a step has: kernels read how many there are
// from `batch`, and blocks that are beyond them end at once.
struct Call {
  const Batch* batch;
  Operand inputs[max_inputs];
  Operand outputs[max_outputs];
  const std::byte* weights[max_weights];  // packed, 256-byte aligned, read-only
  std::byte* kv;                          // this layer's KV blocks, or null
  std::byte* scratch;                     // 256-byte aligned; holds nothing when the step begins
  uint32_t* counters;                     // at zero when the step begins, and when it ends
  int32_t counts_logit_rows;              // rows of this step are wanted logit rows, not tokens

  int rows() const { return counts_logit_rows ? batch->num_logit_rows : batch->num_tokens; }
};

}  // namespace slipway::cuda
