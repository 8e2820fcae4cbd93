#include "sampling_params.hpp"

#include <cmath>

namespace slipway {
namespace {

std::string number(double value) {
  std::string text = std::to_string(value);
  text.erase(text.find_last_not_of('0') + 1);
  return text.ends_with('.') ? text + "0" : text;
}

// One field: its name, whether it is as it must be, what it is, what was expected.
struct Rule {
  const char* name;
  bool holds;
  double found;
  const char* expected;
};

}  // namespace

std::optional<std::string> check(const SamplingParams& p, int32_t vocab_size) {
  const auto token_fits = [vocab_size](int32_t token) { return token >= 0 && token < vocab_size; };
  const Rule rules[] = {
      {"repetition_penalty", p.repetition_penalty > 0 && std::isfinite(p.repetition_penalty), p.repetition_penalty, "a number above 0"},
      {"presence_penalty", std::isfinite(p.presence_penalty), p.presence_penalty, "a finite number"},
      {"frequency_penalty", std::isfinite(p.frequency_penalty), p.frequency_penalty, "a finite number"},
      {"temperature", p.temperature >= 0 && std::isfinite(p.temperature), p.temperature, "a number of at least 0"},
      {"top_k", p.top_k >= 0, static_cast<double>(p.top_k), "a whole number of at least 0"},
      {"typical_p", p.typical_p > 0 && p.typical_p <= 1, p.typical_p, "a number above 0 and at most 1"},
      {"top_p", p.top_p > 0 && p.top_p <= 1, p.top_p, "a number above 0 and at most 1"},
      {"min_p", p.min_p >= 0 && p.min_p <= 1, p.min_p, "a number from 0 to 1"},
      {"logprobs", !p.logprobs || (*p.logprobs >= 0 && *p.logprobs <= vocab_size), static_cast<double>(p.logprobs.value_or(0)), "0..vocabulary size"},
      {"prompt_logprobs", !p.prompt_logprobs || (*p.prompt_logprobs >= 0 && *p.prompt_logprobs <= vocab_size), static_cast<double>(p.prompt_logprobs.value_or(0)), "0..vocabulary size"},
      {"max_tokens", !p.max_tokens || *p.max_tokens >= 1, static_cast<double>(p.max_tokens.value_or(1)), "a whole number of at least 1"},
      {"min_tokens", p.min_tokens >= 0, static_cast<double>(p.min_tokens), "a whole number of at least 0"},
      {"n", p.n >= 1, static_cast<double>(p.n), "a whole number of at least 1"},
      {"speculate_tokens", p.speculate_tokens >= 0, static_cast<double>(p.speculate_tokens), "a whole number of at least 0"},
  };
  for (const Rule& rule : rules)
    if (!rule.holds) return std::string(rule.name) + ": " + number(rule.found) + ", expected " + rule.expected;
  const auto bad_token = [&](const char* field, int32_t token) {
    return std::string(field) + ": token " + std::to_string(token) + ", expected 0.." + std::to_string(vocab_size - 1);
  };
  for (const auto& [token, bias] : p.logit_bias) {
    if (!token_fits(token)) return bad_token("logit_bias", token);
    if (std::isnan(bias) || bias == INFINITY) return "logit_bias: " + number(bias) + " for token " + std::to_string(token) + ", expected a number";
  }
  for (const auto& word : p.bad_words) {
    if (word.empty()) return "bad_words: an empty word, expected at least one token";
    for (const int32_t token : word)
      if (!token_fits(token)) return bad_token("bad_words", token);
  }
  for (const int32_t token : p.stop_token_ids)
    if (!token_fits(token)) return bad_token("stop_token_ids", token);
  for (const std::string& stop : p.stop)
    if (stop.empty()) return std::string("stop: an empty string, expected at least one character");
  return std::nullopt;
}

}  // namespace slipway
