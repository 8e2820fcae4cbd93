// What a GPU needs to draw tokens as Sampler would: for each row a Draw, and the changes to its logits.
//
// The host keeps rows that want logprobs or typical_p, are bound by a grammar, have a top_k of nearly as many tokens as the kernel has
// groups of logits, or come in a step after most_edits changes. Of those that it does not keep, the kernel leaves it those whose filters
// need more candidates than there is room for.
#pragma once
#include <span>
#include <vector>

#include "sampler.hpp"
#include "slipway/batch.hpp"

namespace slipway {

// Whether a GPU can draw what the parameters ask for, not knowing the token before: penalties and bad words look at it.
bool draws_ahead(const SamplingParams& params, int32_t vocab_size);

class Draws {
 public:
  explicit Draws(int32_t vocab_size) : places_(static_cast<size_t>(vocab_size), -1) {}

  void clear();
  void add(const SampleContext& row);

  std::span<const Draw> draws() const { return draws_; }
  std::span<const LogitEdit> edits() const { return edits_; }

 private:
  void add_edits(const SampleContext& row);
  LogitEdit& edit(int32_t token);

  std::vector<Draw> draws_;
  std::vector<LogitEdit> edits_;
  std::vector<int32_t> places_;  // [vocab_size] of a token's edit among those of the row under way, or -1
};

inline constexpr size_t most_edits = 1 << 16;  // of a step; a GPU's memory for them is reserved

}  // namespace slipway
