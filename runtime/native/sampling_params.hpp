// What a request asks of the sampler and of its own end; plain values, checked once by `check`.
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace slipway {

struct SamplingParams {
  // Shape of the distribution, in the order in which sampler.hpp applies it.
  std::vector<std::pair<int32_t, float>> logit_bias;   // added to the logit of a token
  std::vector<std::vector<int32_t>> bad_words;         // token sequences that must not be completed
  float repetition_penalty = 1.0f;                     // 1 = off; counts prompt and output (arXiv:1909.05858)
  float presence_penalty = 0.0f;                       // 0 = off; counts output
  float frequency_penalty = 0.0f;                      // 0 = off; counts output
  float temperature = 1.0f;                            // 0 = greedy, ties to the lowest id
  int32_t top_k = 0;                                   // 0 = off
  float typical_p = 1.0f;                              // 1 = off (arXiv:2202.00666)
  float top_p = 1.0f;                                  // 1 = off
  float min_p = 0.0f;                                  // 0 = off
  std::optional<uint64_t> seed;                        // none: the scheduler draws one
  std::optional<int32_t> logprobs;                     // none: no logprobs; k: of the token and of the k best, k may be 0
  std::optional<int32_t> prompt_logprobs;              // the same for each token of the prompt behind the first

  // The end.
  std::optional<int32_t> max_tokens;                   // none, or more than there is room for: until the sequence is full
  int32_t min_tokens = 0;                              // until then neither eos, stop ids nor stop strings end it
  bool ignore_eos = false;
  std::vector<int32_t> stop_token_ids;
  std::vector<std::string> stop;                       // UTF-8; matched on bytes, across token borders
  bool include_stop = false;                           // leave the stop string, or the stop token's text, in the text
  bool skip_special_tokens = true;

  int32_t n = 1;                                       // sequences of this request
  int32_t speculate_tokens = 0;                        // draft tokens a step may verify for one sequence
};

// A sentence that says what is wrong and what was expected, or nothing.
std::optional<std::string> check(const SamplingParams& params, int32_t vocab_size);

}  // namespace slipway
