// One step's work: the ragged batch for the executor, and how to sample each of its logit rows.
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "request.hpp"
#include "slipway/abi.hpp"

namespace slipway {

struct Sequence;

// Owned by the scheduler, valid from next() to commit().
struct StepBatch {
  // A sequence's share of the step.
  struct Slot {
    Sequence* sequence;  // null: it left after the step began, which computes for nobody then
    int32_t num_tokens;
    int32_t num_drafts;  // the last of these tokens
    int32_t first_row, num_rows;
    int32_t num_scored;  // the first of these rows: of the prompt, for its logprobs
  };

  // A slot with a grammar and rows to draw from.
  struct Constrained {
    size_t slot, first_mask;
  };

  Batch batch{};                          // views of the vectors below
  std::vector<SampleContext> rows;        // [num_logit_rows] how to sample each logit row; without params: not at all, its sequence left
  std::vector<uint64_t> request_ids;      // [num_seqs], for logs and tests
  std::vector<int32_t> sequence_indices;  // [num_seqs]
  std::vector<Slot> slots;                // [num_seqs]
  std::vector<Constrained> constrained;
  std::vector<uint32_t> masks;            // [rows of constrained slots][words_a_mask]
  size_t words_a_mask = 0;
  std::vector<int32_t> token_ids, positions, cu_seqlens, kv_lens, block_table, logit_rows;

  int32_t num_tokens() const { return static_cast<int32_t>(token_ids.size()); }
  int32_t num_rows() const { return static_cast<int32_t>(rows.size()); }

  void clear();
  // The next num_tokens of the sequence's uncomputed tokens. Logits are wanted of those in the prompt that are to be scored
  // and, if the tokens are the last, of the last known one and of each draft token behind it.
  void append(Sequence& sequence, int32_t num_tokens);
  // The token that the step before draws in its logit row `row`.
  void append_drawn(Sequence& sequence, int32_t row);
  void take_drawn();  // the sequences have those tokens now
  void seal(int32_t vocab_size);  // lays out the block table and the masks, and points `batch` at everything

  // Gives the rows of constrained[index] their masks, or says why it could not. Once each before they are sampled; different ones
  // by different threads.
  std::optional<std::string> constrain(size_t index);
};

}  // namespace slipway
