// A request on its way through the scheduler, and what comes out of it.
#pragma once
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "constraint.hpp"
#include "detokenizer.hpp"
#include "kv_cache.hpp"
#include "penalties.hpp"
#include "sampler.hpp"
#include "sampling_params.hpp"

namespace slipway {

// Times are seconds on one monotonic clock, the caller's.
struct Request {
  uint64_t id = 0;                  // the caller's; unique among unfinished requests
  std::vector<int32_t> prompt;
  SamplingParams params;
  int32_t priority = 0;             // lower is more urgent
  std::optional<double> deadline_s; // fails with "deadline" unless first scheduled by then
  uint64_t salt = 0;                // prefixes are shared only between equal salts
  std::shared_ptr<const Grammar> grammar;  // none: any output
};

enum class FinishReason { stop, length, cancelled, deadline, error };
const char* name(FinishReason reason);

struct Metrics {
  double arrival_s = 0;
  std::optional<double> first_scheduled_s, first_token_s, finished_s;
  int32_t prompt_tokens = 0, cached_tokens = 0;  // cached: found computed, before any preemption
  int32_t output_tokens = 0;
  int32_t drafted_tokens = 0, accepted_tokens = 0;
  int32_t preemptions = 0;
};

struct OutputToken {
  int32_t token;
  std::optional<float> logprob;
  std::vector<TokenLogprob> top;
};

// News of one sequence. The last one has `finish`; each sequence gets exactly one of those.
struct Event {
  uint64_t request_id;
  int32_t sequence_index;               // [0, n)
  std::vector<OutputToken> tokens;      // new tokens, the one that stopped the sequence included
  std::vector<OutputToken> prompt_logprobs;  // of prompt[1...], with the first tokens, if the request wants them
  std::string text;                     // new text; empty if the scheduler has no vocabulary
  std::optional<FinishReason> finish;
  std::string error;                    // with FinishReason::error: what went wrong
  Metrics metrics;                      // as of now
};

// Why a request was not taken.
struct Refusal {
  enum class Reason { invalid, too_long, queue_full };
  Reason reason;
  std::string message;
};

}  // namespace slipway
