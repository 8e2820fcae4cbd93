#include "grammars.hpp"

#include <algorithm>
#include <cctype>
#include <stdexcept>
#include <utility>

#include "llguidance.hpp"

namespace slipway {

struct GrammarCompiler::Shared {
  llg::Library library;
  int32_t vocab_size;
  llg::Tokenizer* tokenizer = nullptr;

  Shared(const std::string& path, int32_t vocab) : library(path), vocab_size(vocab) {}
  ~Shared() { library.free_tokenizer(tokenizer); }
  Shared(const Shared&) = delete;
};

namespace {

using Shared = std::shared_ptr<const GrammarCompiler::Shared>;

constexpr char special_marker = '\xFF';  // in front of a token that no text matches
constexpr size_t longest_error = 300;
constexpr size_t most_lexer_states = 50'000;  // 1-2 kB each

std::string one_line(std::string_view text) {
  std::string line;
  for (const char c : text.substr(0, longest_error))
    if (!std::isspace(static_cast<unsigned char>(c))) line += c;
    else if (!line.empty() && line.back() != ' ') line += ' ';
  while (!line.empty() && static_cast<signed char>(line.back()) < 0) line.pop_back();  // half a character
  return line + (text.size() > longest_error ? " ..." : "");
}

// A matcher, and what must live as long.
class Matcher {
 public:
  Matcher(Shared shared, llg::Matcher* matcher) : shared_(std::move(shared)), matcher_(matcher) {}
  Matcher(Matcher&& other) noexcept : shared_(other.shared_), matcher_(std::exchange(other.matcher_, nullptr)) {}
  Matcher(const Matcher& other) : shared_(other.shared_), matcher_(shared_->library.clone_matcher(other.matcher_)) {}
  Matcher& operator=(const Matcher&) = delete;
  ~Matcher() { shared_->library.free_matcher(matcher_); }

  const llg::Library& library() const { return shared_->library; }
  int32_t vocab_size() const { return shared_->vocab_size; }
  llg::Matcher* get() const { return matcher_; }
  std::optional<std::string> error() const {
    const char* error = library().matcher_get_error(matcher_);
    if (!error) return std::nullopt;
    const std::string_view text(error);
    return one_line(text.substr(0, text.find("<backtrace>")));
  }

 private:
  Shared shared_;
  llg::Matcher* matcher_;
};

class MatcherConstraint : public TokenConstraint {
 public:
  explicit MatcherConstraint(const Matcher& fresh) : matcher_(fresh) {}

  bool take(int32_t token) override {
    if (matcher_.library().matcher_consume_token(matcher_.get(), static_cast<uint32_t>(token)) != 0) return false;  // allow() says why
    return matcher_.library().matcher_is_stopped(matcher_.get());
  }

  std::optional<std::string> allow(std::span<const int32_t> drafts, std::span<const int32_t> ending, std::span<uint32_t> masks) override {
    const llg::Library& library = matcher_.library();
    const size_t words = mask_words(matcher_.vocab_size());
    size_t taken = 0;
    for (;;) {
      const auto mask = masks.subspan(taken * words, words);
      if (auto error = fill(mask, ending)) return error;
      if (taken == drafts.size()) break;
      const auto draft = static_cast<uint32_t>(drafts[taken]);
      const bool follows = mask[draft / 32] >> (draft % 32) & 1 && library.matcher_validate_tokens(matcher_.get(), &draft, 1) == 1;
      if (!follows || library.matcher_consume_token(matcher_.get(), draft) != 0) break;
      ++taken;
      if (library.matcher_is_stopped(matcher_.get())) break;
    }
    std::ranges::fill(masks.subspan((1 + taken) * words), ~0u);
    if (taken > 0 && library.matcher_rollback(matcher_.get(), taken) != 0) return failure();
    return std::nullopt;
  }

 private:
  std::optional<std::string> fill(std::span<uint32_t> mask, std::span<const int32_t> ending) {
    const llg::Library& library = matcher_.library();
    const bool may_stop = library.matcher_is_accepting(matcher_.get());
    if (library.matcher_compute_mask_into(matcher_.get(), mask.data(), mask.size_bytes()) != 0) return failure();
    if (may_stop)
      for (const int32_t token : ending) mask[static_cast<size_t>(token) / 32] |= 1u << (token % 32);
    return std::nullopt;
  }

  std::optional<std::string> failure() const { return "the grammar could not be followed: " + matcher_.error().value_or("no reason given"); }

  Matcher matcher_;
};

class MatcherGrammar : public Grammar {
 public:
  explicit MatcherGrammar(Matcher matcher) : matcher_(std::move(matcher)) {}
  std::unique_ptr<TokenConstraint> start() const override { return std::make_unique<MatcherConstraint>(matcher_); }

 private:
  Matcher matcher_;
};

}  // namespace

GrammarCompiler::GrammarCompiler(const std::string& library, const std::vector<std::string>& pieces, const std::vector<bool>& special,
                                 int32_t vocab_size) {
  std::vector<uint32_t> lengths(static_cast<size_t>(vocab_size));  // of tokens without a piece: 0, never allowed
  std::string bytes;
  for (size_t token = 0; token < std::min(pieces.size(), lengths.size()); ++token) {
    const size_t before = bytes.size();
    if (special[token]) bytes += special_marker;
    bytes += pieces[token];
    lengths[token] = static_cast<uint32_t>(bytes.size() - before);
  }
  auto shared = std::make_shared<Shared>(library, vocab_size);
  llg::TokenizerInit init;
  init.vocab_size = static_cast<uint32_t>(vocab_size);
  init.token_lens = lengths.data();
  init.token_bytes = reinterpret_cast<const uint8_t*>(bytes.data());
  init.use_approximate_greedy_tokenize_fn = true;  // nothing is tokenized: every way to spell an output is allowed
  char error[256] = "";
  shared->tokenizer = shared->library.new_tokenizer_v2(&init, error, sizeof(error));
  if (!shared->tokenizer) throw std::runtime_error(std::string("llguidance does not take the vocabulary: ") + error);
  shared_ = std::move(shared);
}

std::shared_ptr<const Grammar> GrammarCompiler::compile(const std::string& kind, const std::string& text) const {
  llg::ConstraintInit init;
  shared_->library.constraint_init_set_defaults(&init, shared_->tokenizer);
  init.log_buffer_level = init.log_stderr_level = 0;
  init.limits.max_lexer_states = most_lexer_states;
  init.limits.verbose_errors = false;
  Matcher matcher(shared_, shared_->library.new_matcher(&init, kind.c_str(), text.c_str()));
  if (auto error = matcher.error()) throw std::invalid_argument(*error);
  return std::make_shared<MatcherGrammar>(std::move(matcher));
}

}  // namespace slipway
