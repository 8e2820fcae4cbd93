#include "penalties.hpp"

#include <algorithm>

namespace slipway {

bool uses_penalties(const SamplingParams& p) {
  return p.repetition_penalty != 1.0f || p.presence_penalty != 0.0f || p.frequency_penalty != 0.0f;
}

PenaltyTable::PenaltyTable(std::span<const int32_t> prompt) : num_counted_(prompt.size()) {
  for (const int32_t token : prompt) entry(token);
}

void PenaltyTable::add_output(int32_t token) {
  ++entry(token).output_count;
  ++num_counted_;
}

PenaltyTable::Seen& PenaltyTable::entry(int32_t token) {
  const auto [place, added] = index_.try_emplace(token, seen_.size());
  if (added) seen_.push_back({token, 0});
  return seen_[place->second];
}

void PenaltyTable::apply(std::span<float> logits, const SamplingParams& params, std::span<const int32_t> pending) const {
  const auto penalize = [&](int32_t token, int32_t output_count) {
    float& logit = logits[static_cast<size_t>(token)];
    logit = logit > 0 ? logit / params.repetition_penalty : logit * params.repetition_penalty;
    logit -= params.frequency_penalty * static_cast<float>(output_count) + (output_count ? params.presence_penalty : 0.0f);
  };
  const auto drafted = [&](int32_t token) { return static_cast<int32_t>(std::ranges::count(pending, token)); };
  for (const Seen& seen : seen_) penalize(seen.token, seen.output_count + drafted(seen.token));
  for (size_t i = 0; i < pending.size(); ++i) {
    const bool again = std::ranges::find(pending.first(i), pending[i]) != pending.begin() + static_cast<ptrdiff_t>(i);
    if (!again && !index_.contains(pending[i])) penalize(pending[i], drafted(pending[i]));
  }
}

}  // namespace slipway
