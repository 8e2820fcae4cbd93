// Token ids -> text, one token at a time, never half a character.
//
// Bytes of the pieces run through two stages that each hold back what they cannot judge yet: a stop matcher (a tail that may
// begin a stop string) and a UTF-8 decoder (an incomplete character). Whatever the token borders, the text pushed out up
// to finish() equals decoding all bytes up to the stop at once, malformed parts replaced by U+FFFD as Python's
// bytes.decode("utf-8", "replace") does. The stop string that is complete first wins; of two that are complete at the
// same byte, the longer.
#pragma once
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace slipway {

// The bytes of every token; immutable after construction, shared by all sequences.
class Vocabulary {
 public:
  // special[t]: token t is left out of the text when a request skips special tokens.
  // strip_leading_space: one space at the very start of a text is dropped (SentencePiece).
  Vocabulary(const std::vector<std::string>& pieces, std::vector<bool> special, bool strip_leading_space);

  int32_t size() const { return static_cast<int32_t>(special_.size()); }
  std::string_view piece(int32_t token) const;  // empty for ids the table does not have (padding of the LM head)
  bool special(int32_t token) const;
  bool strip_leading_space() const { return strip_leading_space_; }

 private:
  std::string bytes_;
  std::vector<size_t> offsets_;  // [size + 1] into bytes_
  std::vector<bool> special_;
  bool strip_leading_space_;
};

// WHATWG UTF-8 decoding, byte by byte: complete characters go out, malformed parts as U+FFFD.
class Utf8Decoder {
 public:
  void push(std::string_view bytes, std::string& out);
  void finish(std::string& out);  // an incomplete tail becomes one U+FFFD

 private:
  std::string held_;              // the start of a character, well-formed so far
  int needed_ = 0;                // continuation bytes still to come
  unsigned char lower_ = 0x80, upper_ = 0xBF;  // bounds of the next continuation byte
};

// Finds the first stop string in a stream of bytes.
class StopMatcher {
 public:
  explicit StopMatcher(std::vector<std::string> stops, bool include_stop)
      : stops_(std::move(stops)), include_stop_(include_stop) {}
  // Appends to `out` what surely comes before any stop; true once a stop string is complete (then nothing more goes in).
  bool push(std::string_view bytes, std::string& out);
  void finish(std::string& out);

 private:
  bool push_byte(char byte, std::string& out);

  std::vector<std::string> stops_;
  bool include_stop_;
  std::string held_;  // longest tail that begins some stop string
};

class TextStream {
 public:
  struct Options {
    std::vector<std::string> stop;
    bool include_stop = false;
    bool skip_special_tokens = true;
  };
  // `vocabulary` must outlive the stream.
  TextStream(const Vocabulary& vocabulary, Options options);

  // Appends new text to `out`; true when a stop string is complete. With may_stop false (min_tokens not reached) this token
  // and what came before it are text, whatever they spell: a stop string must lie behind them as a whole.
  bool push(int32_t token, std::string& out, bool may_stop = true);
  void finish(std::string& out);  // the last of what was held back

 private:
  const Vocabulary* vocabulary_;
  bool skip_special_tokens_;
  bool at_start_ = true;
  StopMatcher stops_;
  Utf8Decoder decoder_;
};

}  // namespace slipway
