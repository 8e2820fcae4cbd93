#include "detokenizer.hpp"

#include <algorithm>
#include <utility>

namespace slipway {
namespace {
constexpr std::string_view replacement = "\xEF\xBF\xBD";
}

Vocabulary::Vocabulary(const std::vector<std::string>& pieces, std::vector<bool> special, bool strip_leading_space)
    : special_(std::move(special)), strip_leading_space_(strip_leading_space) {
  special_.resize(pieces.size());
  offsets_.reserve(pieces.size() + 1);
  offsets_.push_back(0);
  for (const std::string& piece : pieces) {
    bytes_ += piece;
    offsets_.push_back(bytes_.size());
  }
}

std::string_view Vocabulary::piece(int32_t token) const {
  if (token < 0 || token >= size()) return {};
  return std::string_view(bytes_).substr(offsets_[token], offsets_[token + 1] - offsets_[token]);
}

bool Vocabulary::special(int32_t token) const { return token >= 0 && token < size() && special_[token]; }

void Utf8Decoder::push(std::string_view bytes, std::string& out) {
  for (const char c : bytes) {
    const auto byte = static_cast<unsigned char>(c);
    if (needed_ > 0 && (byte < lower_ || byte > upper_)) finish(out);  // this byte may begin a character of its own
    if (needed_ > 0) {
      held_ += c;
      lower_ = 0x80, upper_ = 0xBF;
      if (--needed_ == 0) out += std::exchange(held_, {});
      continue;
    }
    if (byte < 0x80) {
      out += c;
    } else if (byte >= 0xC2 && byte <= 0xF4) {
      needed_ = byte < 0xE0 ? 1 : byte < 0xF0 ? 2 : 3;
      lower_ = byte == 0xE0 ? 0xA0 : byte == 0xF0 ? 0x90 : 0x80;  // no overlong forms
      upper_ = byte == 0xED ? 0x9F : byte == 0xF4 ? 0x8F : 0xBF;  // no surrogates, nothing beyond U+10FFFF
      held_ = c;
    } else {
      out += replacement;
    }
  }
}

void Utf8Decoder::finish(std::string& out) {
  if (needed_ > 0) out += replacement;
  held_.clear();
  needed_ = 0;
  lower_ = 0x80, upper_ = 0xBF;
}

bool StopMatcher::push(std::string_view bytes, std::string& out) {
  if (stops_.empty()) {
    out += bytes;
    return false;
  }
  return std::ranges::any_of(bytes, [&](char byte) { return push_byte(byte, out); });
}

// Keeps in held_ the longest tail that begins some stop string; the longest stop string that ends here wins.
bool StopMatcher::push_byte(char byte, std::string& out) {
  held_ += byte;
  const std::string* complete = nullptr;
  for (const std::string& stop : stops_)
    if (held_.ends_with(stop) && (!complete || stop.size() > complete->size())) complete = &stop;
  if (complete) {
    out.append(held_, 0, held_.size() - (include_stop_ ? 0 : complete->size()));
    held_.clear();
    return true;
  }
  size_t keep = 0;
  for (const std::string& stop : stops_)
    for (size_t size = std::min(held_.size(), stop.size() - 1); size > keep; --size)
      if (held_.ends_with(std::string_view(stop).substr(0, size))) keep = size;
  out.append(held_, 0, held_.size() - keep);
  held_.erase(0, held_.size() - keep);
  return false;
}

void StopMatcher::finish(std::string& out) { out += std::exchange(held_, {}); }

TextStream::TextStream(const Vocabulary& vocabulary, Options options)
    : vocabulary_(&vocabulary), skip_special_tokens_(options.skip_special_tokens), stops_(std::move(options.stop), options.include_stop) {}

bool TextStream::push(int32_t token, std::string& out, bool may_stop) {
  if (skip_special_tokens_ && vocabulary_->special(token)) return false;
  std::string_view piece = vocabulary_->piece(token);
  if (piece.empty()) return false;
  if (std::exchange(at_start_, false) && vocabulary_->strip_leading_space() && piece.starts_with(' ')) piece.remove_prefix(1);
  std::string bytes;
  bool stopped = false;
  if (may_stop) {
    stopped = stops_.push(piece, bytes);
  } else {  // a stop string completed here is text: match on what follows alone
    stops_.finish(bytes);
    bytes += piece;
  }
  decoder_.push(bytes, out);
  if (stopped) decoder_.finish(out);
  return stopped;
}

void TextStream::finish(std::string& out) {
  std::string bytes;
  stops_.finish(bytes);
  decoder_.push(bytes, out);
  decoder_.finish(out);
}

}  // namespace slipway
