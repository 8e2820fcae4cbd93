// How often a sequence has seen each token, kept sparse: what the penalties need, in the order tokens appeared.
//
// Owned by its sequence; the engine thread adds tokens at commit, sampler threads only read.
#pragma once
#include <cstdint>
#include <span>
#include <unordered_map>
#include <vector>

#include "sampling_params.hpp"

namespace slipway {

class PenaltyTable {
 public:
  struct Seen {
    int32_t token;
    int32_t output_count;  // occurrences in the output; the prompt counts only as "seen"
  };

  explicit PenaltyTable(std::span<const int32_t> prompt);
  void add_output(int32_t token);

  // Applies repetition, then frequency and presence penalties to `logits`. `pending` are draft tokens that this row takes as
  // accepted: they count as output here, but are not in the table.
  void apply(std::span<float> logits, const SamplingParams& params, std::span<const int32_t> pending) const;

  size_t num_counted() const { return num_counted_; }  // tokens of the history in the table

 private:
  Seen& entry(int32_t token);

  std::vector<Seen> seen_;
  std::unordered_map<int32_t, size_t> index_;  // token -> place in seen_
  size_t num_counted_ = 0;
};

bool uses_penalties(const SamplingParams& params);

}  // namespace slipway
