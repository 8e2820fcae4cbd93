// Where draft tokens come from. A wrong draft costs a row, never a different token.
#pragma once
#include <cstdint>
#include <span>
#include <vector>

namespace slipway {

class DraftSource {
 public:
  virtual ~DraftSource() = default;
  // Appends up to max_tokens guesses of what follows `history` (prompt and output) to `drafts`.
  virtual void propose(std::span<const int32_t> history, int32_t max_tokens, std::vector<int32_t>& drafts) = 0;
};

// What followed the most recent earlier occurrence of the longest suffix n-gram (Saxena, "Prompt Lookup Decoding", 2023).
class PromptLookup : public DraftSource {
 public:
  explicit PromptLookup(int32_t max_ngram = 3, int32_t min_ngram = 2) : max_ngram_(max_ngram), min_ngram_(min_ngram) {}
  void propose(std::span<const int32_t> history, int32_t max_tokens, std::vector<int32_t>& drafts) override;

 private:
  int32_t max_ngram_, min_ngram_;
};

}  // namespace slipway
