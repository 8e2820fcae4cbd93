// What a request's output must match, as the scheduler sees it.
#pragma once
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>

namespace slipway {

// How far one sequence has come in its grammar. Its sequence owns it; used by one thread at a time.
class TokenConstraint {
 public:
  virtual ~TokenConstraint() = default;

  // The token becomes part of the output. True: the grammar is complete and nothing can follow.
  virtual bool take(int32_t token) = 0;

  // masks [1 + drafts][words]: what may follow the output, and what may follow it and each draft more; see
  // SampleContext::allowed_tokens. `ending` tokens are allowed wherever the grammar may stop. Behind a draft that is not allowed,
  // masks allow everything: nothing is drawn there. Returns what went wrong, in a sentence.
  virtual std::optional<std::string> allow(std::span<const int32_t> drafts, std::span<const int32_t> ending, std::span<uint32_t> masks) = 0;
};

// Shared by the sequences of a request, and by requests.
class Grammar {
 public:
  virtual ~Grammar() = default;
  virtual std::unique_ptr<TokenConstraint> start() const = 0;  // any thread
};

constexpr size_t mask_words(int32_t vocab_size) { return (static_cast<size_t>(vocab_size) + 31) / 32; }

}  // namespace slipway
