#include "drafts.hpp"

#include <algorithm>

namespace slipway {

void PromptLookup::propose(std::span<const int32_t> history, int32_t max_tokens, std::vector<int32_t>& drafts) {
  const auto length = static_cast<int64_t>(history.size());
  for (int64_t n = max_ngram_; n >= min_ngram_; --n) {
    if (length <= n) continue;
    const auto suffix = history.last(static_cast<size_t>(n));
    for (int64_t start = length - n - 1; start >= 0; --start) {
      if (!std::ranges::equal(history.subspan(static_cast<size_t>(start), static_cast<size_t>(n)), suffix)) continue;
      const auto follows = history.subspan(static_cast<size_t>(start + n));
      const auto count = std::min(follows.size(), static_cast<size_t>(std::max(max_tokens, 0)));
      drafts.insert(drafts.end(), follows.begin(), follows.begin() + static_cast<ptrdiff_t>(count));
      return;
    }
  }
}

}  // namespace slipway
