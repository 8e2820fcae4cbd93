#include "penalties.hpp"

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

}  // namespace slipway
