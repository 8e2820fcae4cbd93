#include "python_events.hpp"

#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <stdexcept>

#include "request_times.hpp"

namespace nb = nanobind;

namespace slipway {
namespace {

// The value as T; std::invalid_argument, as "field: found, expected ...", for what is none: an int of more than 32 bits, text that is not Unicode.
template <class T> T converted(nb::handle value, const char* name) {
  T result;
  if (nb::try_cast(value, result)) return result;
  throw std::invalid_argument(std::string(name) + ": " + nb::cast<std::string>(nb::steal(PyObject_ASCII(value.ptr()))) +
                              ", expected a value that the engine can hold");
}

template <class T> void read(T& field, nb::handle object, const char* name) { field = converted<T>(object.attr(name), name); }

nb::list tokens_of(const Event& event) {
  nb::list result;
  for (const OutputToken& token : event.tokens) result.append(token.token);
  return result;
}

// For each token its own logprob, then those of the best.
nb::object logprobs_of(const std::vector<OutputToken>& tokens) {
  if (tokens.empty() || !tokens.front().logprob) return nb::none();
  nb::list result;
  for (const OutputToken& token : tokens) {
    nb::list entries;
    entries.append(nb::make_tuple(token.token, *token.logprob));
    for (const TokenLogprob& best : token.top) entries.append(nb::make_tuple(best.token, best.logprob));
    result.append(entries);
  }
  return result;
}

nb::object times_of(const Event& event) {
  if (!event.finish) return nb::none();
  const RequestTimes times(event.metrics);
  return nb::make_tuple(times.queue_s, times.ttft_s, times.total_s, times.inter_token_s, event.metrics.preemptions);
}

nb::object text_or_none(const char* text) { return text ? nb::object(nb::str(text)) : nb::none(); }

}  // namespace

SamplingParams params_from_python(nb::handle from) {
  SamplingParams params;
  for (auto [token, bias] : nb::borrow<nb::dict>(from.attr("logit_bias")))
    params.logit_bias.emplace_back(converted<int32_t>(token, "logit_bias"), converted<float>(bias, "logit_bias"));
  for (nb::handle word : from.attr("bad_words")) params.bad_words.push_back(converted<std::vector<int32_t>>(word, "bad_words"));
  for (nb::handle token : from.attr("stop_token_ids")) params.stop_token_ids.push_back(converted<int32_t>(token, "stop_token_ids"));
  for (nb::handle text : from.attr("stop")) params.stop.push_back(converted<std::string>(text, "stop"));
  read(params.repetition_penalty, from, "repetition_penalty");
  read(params.presence_penalty, from, "presence_penalty");
  read(params.frequency_penalty, from, "frequency_penalty");
  read(params.temperature, from, "temperature");
  read(params.top_k, from, "top_k");
  read(params.typical_p, from, "typical_p");
  read(params.top_p, from, "top_p");
  read(params.min_p, from, "min_p");
  read(params.seed, from, "seed");
  read(params.logprobs, from, "logprobs");
  read(params.prompt_logprobs, from, "prompt_logprobs");
  read(params.max_tokens, from, "max_tokens");
  read(params.min_tokens, from, "min_tokens");
  read(params.ignore_eos, from, "ignore_eos");
  read(params.include_stop, from, "include_stop");
  read(params.skip_special_tokens, from, "skip_special_tokens");
  read(params.n, from, "n");
  read(params.speculate_tokens, from, "speculate_tokens");
  return params;
}

Vocabulary vocabulary_from_python(nb::handle from) {
  std::vector<std::string> pieces;
  for (nb::handle piece : from.attr("pieces")) {
    const auto bytes = nb::borrow<nb::bytes>(piece);
    pieces.emplace_back(bytes.c_str(), bytes.size());
  }
  return {pieces, nb::cast<std::vector<bool>>(from.attr("special")), nb::cast<bool>(from.attr("strip_leading_space"))};
}

nb::list events_to_python(const std::vector<Event>& events) {
  nb::list result;
  for (const Event& event : events) {
    const bool failed = event.finish == FinishReason::error;
    result.append(nb::make_tuple(event.request_id, event.sequence_index, event.text, tokens_of(event), logprobs_of(event.tokens), logprobs_of(event.prompt_logprobs),
                                 text_or_none(event.finish ? name(*event.finish) : nullptr),
                                 text_or_none(failed ? event.error.c_str() : nullptr), times_of(event), event.metrics.cached_tokens));
  }
  return result;
}

}  // namespace slipway
