// One row of logits -> one token.
//
// The order is fixed: logit_bias; bad words; min_tokens (eos and stop ids masked); repetition, frequency and presence
// penalties; grammar mask; temperature; top_k; typical_p; top_p; min_p; draw. Each filter sees the distribution that the
// one before left, renormalised. Tokens rank by (logit descending, id ascending): top_k keeps exactly k, top_p the shortest
// prefix whose mass reaches p, typical_p the same in the order (distance from the entropy, id); min_p keeps what has
// at least min_p times the probability of the best token left. The draw inverts the cumulative mass in order of ids.
//
// Logprobs are those of the model: log-softmax of the row as it came, before all of the above.
//
// A Sampler owns scratch for one row: one Sampler a thread, any number at work at once on different rows.
#pragma once
#include <algorithm>
#include <cstdint>
#include <limits>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "penalties.hpp"
#include "sampling_params.hpp"

namespace slipway {

struct TokenLogprob {
  int32_t token;
  float logprob;
};

struct Sampled {
  int32_t token = 0;
  bool again = false;                    // none was drawn: the host is to draw, of logits computed once more
  std::optional<std::string> error;      // NaN or +inf logits, or no token left; then `token` means nothing
  std::optional<float> logprob;          // of `token`, if the request wants logprobs
  std::vector<TokenLogprob> top;         // the best params.logprobs tokens, best first
};

// All that a row's token depends on besides its logits. Views into the sequence; valid from next() to commit().
struct SampleContext {
  const SamplingParams* params = nullptr;
  std::span<const int32_t> history;            // prompt, output, and the draft tokens in front of this row
  int32_t prompt_length = 0;
  const PenaltyTable* penalties = nullptr;     // null: no penalties
  std::span<const int32_t> ending_tokens;      // eos and stop ids: masked until min_tokens is reached
  const uint32_t* allowed_tokens = nullptr;    // bit t%32 of word t/32: token t is allowed; null: all are
  uint64_t seed = 0;
  uint32_t sequence_index = 0;
  bool on_host = false;                        // to be drawn by the host, whatever else it asks
  int32_t pending = 0;                         // tokens behind the history that the step before draws
  std::optional<int32_t> given = std::nullopt; // in the prompt: the token that follows. None is drawn, its logprob is wanted

  int32_t output_position() const { return static_cast<int32_t>(history.size()) + pending - prompt_length; }
};

// Calls what changes single logits, in the order above, up to the grammar: add(token, bias), and then penalize(token, Penalty), once a token.
template <class Add, class Penalize> void edit_logits(const SampleContext& row, Add add, Penalize penalize) {
  constexpr float masked = -std::numeric_limits<float>::infinity();
  const SamplingParams& params = *row.params;
  const auto ends_with = [&](std::span<const int32_t> tail) {
    return row.history.size() >= tail.size() && std::ranges::equal(row.history.last(tail.size()), tail);
  };
  for (const auto& [token, bias] : params.logit_bias) add(token, bias);
  for (const std::vector<int32_t>& word : params.bad_words)
    if (ends_with(std::span(word).first(word.size() - 1))) add(word.back(), masked);
  if (row.output_position() < params.min_tokens)
    for (const int32_t token : row.ending_tokens) add(token, masked);
  if (row.penalties) row.penalties->each(params, row.history.subspan(row.penalties->num_counted()), penalize);
}

inline constexpr const char* invalid_logits = "the model's logits hold NaN or infinity";
inline constexpr const char* invalid_edits = "biases and penalties made a logit infinite";

class Sampler {
 public:
  explicit Sampler(int32_t vocab_size);
  ~Sampler();
  Sampler(Sampler&&) noexcept;

  // `logits` [vocab_size] is overwritten. edited: what edit_logits asks for has been done to them.
  Sampled sample(std::span<float> logits, const SampleContext& context, bool edited = false);

 private:
  struct Scratch;
  int32_t vocab_size_;
  std::unique_ptr<Scratch> scratch_;
};

}  // namespace slipway
