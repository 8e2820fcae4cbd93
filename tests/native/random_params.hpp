// Requests of every kind for the native tests, each a function of a seed.
#pragma once
#include <cstdint>
#include <random>

#include "sampling_params.hpp"

namespace slipway {

struct Random : std::mt19937_64 {
  using std::mt19937_64::mt19937_64;
  int32_t in(int32_t low, int32_t high) { return std::uniform_int_distribution<int32_t>(low, high)((*this)); }
  bool once_in(int32_t n) { return in(1, n) == 1; }
};

// For any vocabulary of at least 7 tokens.
inline SamplingParams random_params(Random& random) {
  SamplingParams p;
  p.temperature = random.once_in(2) ? 0.0f : 0.7f;
  p.top_k = random.once_in(3) ? 4 : 0;
  p.top_p = random.once_in(3) ? 0.8f : 1.0f;
  p.typical_p = random.once_in(4) ? 0.7f : 1.0f;
  p.min_p = random.once_in(4) ? 0.1f : 0.0f;
  p.repetition_penalty = random.once_in(3) ? 1.2f : 1.0f;
  p.presence_penalty = random.once_in(4) ? 0.5f : 0.0f;
  p.frequency_penalty = random.once_in(4) ? 0.3f : 0.0f;
  if (random.once_in(4)) p.logit_bias = {{2, 1.5f}, {6, -2.0f}};
  if (random.once_in(4)) p.bad_words = {{3, 4}, {5}};
  if (random.once_in(2)) p.max_tokens = random.in(1, 16);
  if (random.once_in(4)) p.min_tokens = random.in(1, 4);
  if (random.once_in(4)) p.stop_token_ids = {6};
  if (random.once_in(4)) p.stop = {"ab", "caf"};
  if (random.once_in(3)) p.logprobs = 2;
  if (random.once_in(4)) p.prompt_logprobs = random.in(0, 2);
  p.ignore_eos = random.once_in(2);
  p.seed = random();
  p.n = random.once_in(4) ? random.in(2, 3) : 1;
  p.speculate_tokens = random.once_in(2) ? random.in(1, 4) : 0;
  return p;
}

}  // namespace slipway
