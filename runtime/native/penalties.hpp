// How often a sequence has seen each token, kept sparse: what the penalties need, in the order tokens appeared.
//
// Owned by its sequence; the engine thread adds tokens at commit, sampler threads only read.
#pragma once
#include <algorithm>
#include <cstdint>
#include <span>
#include <unordered_map>
#include <vector>

#include "sampling_params.hpp"

namespace slipway {

// What is done to the logit of a token that was seen: over repetition where it is above 0, else times it; then minus.
struct Penalty {
  float repetition, minus;
  float operator()(float logit) const { return (logit > 0 ? logit / repetition : logit * repetition) - minus; }
};

class PenaltyTable {
 public:
  struct Seen {
    int32_t token;
    int32_t output_count;  // occurrences in the output; the prompt counts only as "seen"
  };

  explicit PenaltyTable(std::span<const int32_t> prompt);
  void add_output(int32_t token);

  // Calls penalize(token, Penalty) for each token seen, once. `pending` are draft tokens that this row takes as accepted: they count
  // as output here, but are not in the table.
  template <class Penalize> void each(const SamplingParams& params, std::span<const int32_t> pending, Penalize penalize) const {
    const auto drafted = [&](int32_t token) { return static_cast<int32_t>(std::ranges::count(pending, token)); };
    for (const Seen& seen : seen_) penalize(seen.token, penalty(params, seen.output_count + drafted(seen.token)));
    for (size_t i = 0; i < pending.size(); ++i) {
      const bool again = std::ranges::find(pending.first(i), pending[i]) != pending.begin() + static_cast<ptrdiff_t>(i);
      if (!again && !index_.contains(pending[i])) penalize(pending[i], penalty(params, drafted(pending[i])));
    }
  }

  size_t num_counted() const { return num_counted_; }  // tokens of the history in the table

 private:
  Seen& entry(int32_t token);
  static Penalty penalty(const SamplingParams& params, int32_t output_count) {
    return {params.repetition_penalty, params.frequency_penalty * static_cast<float>(output_count) + (output_count ? params.presence_penalty : 0.0f)};
  }

  std::vector<Seen> seen_;
  std::unordered_map<int32_t, size_t> index_;  // token -> place in seen_
  size_t num_counted_ = 0;
};

bool uses_penalties(const SamplingParams& params);

}  // namespace slipway
