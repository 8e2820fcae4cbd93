// What one step of an engine computes on: the part of the contract that kernels of every device see.
#pragma once
#include "slipway/integers.hpp"

namespace slipway {

// How a GPU draws one logit row's token; see runtime/native/sampler.hpp.
struct Draw {
  double uniform;       // in [0, 1): where in the cumulative mass
  float scale;          // 1 / temperature; 0: greedy
  float top_p, min_p;   // 1, 0: off
  int32_t top_k;        // 0: off
  int32_t first_edit, num_edits;
  int32_t on_device;    // 0: the host draws this row
};

// Instead of a token that was drawn.
inline constexpr int32_t left_to_host = -1, drew_invalid_logits = -2, drew_invalid_edits = -3;

// logit += add; then over repetition if that is above 0, else times it; then minus.
struct LogitEdit {
  int32_t token;        // once a row
  float add, repetition, minus;
};

// A matrix in the arena (or a column range of one): row r starts at data + r * row_bytes.
struct Operand {
  std::byte* data;
  int64_t row_bytes;
  template <class T> T* row(int64_t r) const { return reinterpret_cast<T*>(data + r * row_bytes); }
};

// One engine step: a ragged batch whose sequences lie one after the other. All arrays live for the whole step.
struct Batch {
  int32_t num_tokens;          // rows of every buffer before the gather
  int32_t num_seqs;
  int32_t num_logit_rows;      // rows of every buffer after the gather
  int32_t max_blocks;          // row length of block_table
  const int32_t* token_ids;    // [num_tokens]
  const int32_t* positions;    // [num_tokens] position of the token in its sequence
  const int32_t* cu_seqlens;   // [num_seqs + 1] first token of each sequence in this batch
  const int32_t* kv_lens;      // [num_seqs] tokens of the sequence in the cache once this step is done
  const int32_t* block_table;  // [num_seqs, max_blocks] index of the KV block that holds positions [i*block_size, ...)
  const int32_t* logit_rows;   // [num_logit_rows] token rows whose logits are wanted, ascending
  const Draw* draws;           // [num_logit_rows]; null: the host draws all rows
  const LogitEdit* edits;      // those of all rows
  Operand drawn;               // tokens of the step before, a row each: a token id below 0 is ~row, on a GPU
};

}  // namespace slipway
