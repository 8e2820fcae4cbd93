// A request and its sequences while the scheduler has them.
#pragma once
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "request.hpp"

namespace slipway {

struct RequestGroup;

struct Sequence {
  RequestGroup* group;
  int32_t index;                         // [0, n)
  std::vector<int32_t> tokens;           // prompt and output; while a step is in flight, its drafts too
  int32_t num_drafts = 0;                // at the end of `tokens`
  int32_t num_computed = 0;              // first tokens whose keys and values are in the cache
  int32_t num_scored = 0;                // first tokens of the prompt after which no logprob is wanted, or it is known
  std::vector<OutputToken> prompt_logprobs;  // found so far, of prompt[1...]
  KvLease lease;                         // held while running
  std::optional<PenaltyTable> penalties;
  std::optional<TextStream> text;
  std::unique_ptr<TokenConstraint> constraint;
  Metrics metrics;
  bool in_step = false;
  bool on_host = false;                  // the host draws from now on: the GPU could not
  bool cancelled = false;                // to be ended when its step is over
  bool finished = false;

  int32_t num_known() const { return static_cast<int32_t>(tokens.size()) - num_drafts; }
  int32_t num_uncomputed() const { return num_known() - num_computed; }
  int32_t num_to_score() const;          // first tokens of the prompt that have a token of the prompt behind them
  int32_t rows_wanted(int32_t num_tokens) const;  // logit rows, if so many of the uncomputed tokens go through a step
};

struct RequestGroup {
  Request request;
  double rank;                           // see scheduler.hpp
  uint64_t order;                        // of arrival
  uint64_t seed;
  int32_t max_tokens;                    // output tokens a sequence may have
  std::vector<int32_t> ending_tokens;    // eos and stop ids
  std::vector<std::unique_ptr<Sequence>> sequences;
  int32_t num_unfinished;
  bool siblings_started = false;         // sequences behind the first wait for its prompt to be computed

  std::vector<Sequence*> unfinished() const;
};

}  // namespace slipway
