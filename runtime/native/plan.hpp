// engine.json as the executor needs it; runtime/manifest_checks.py has checked every index and range in it.
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace slipway {

struct Limits {
  int32_t max_sequence_length, max_batch_tokens, max_sequences, max_logit_rows;
};

struct OperandSpec {
  int64_t arena_offset, row_bytes;
};

struct StepSpec {
  std::string symbol;  // empty for a segment
  bool logit_rows;     // counts its rows in wanted logits, not in tokens
  std::vector<OperandSpec> inputs, outputs;
  std::vector<int32_t> weights;
  std::optional<int32_t> kv_layer;
};

struct KvSpec {
  int32_t layers, block_size, num_blocks;
  int64_t block_bytes;  // of one layer
};

struct Plan {
  int64_t arena_bytes, shared_scratch_bytes, local_scratch_bytes;
  int32_t vocab_size;
  OperandSpec logits;
  KvSpec kv;
  Limits limits;
  std::vector<StepSpec> steps;
  std::string library;  // path
};

}  // namespace slipway
