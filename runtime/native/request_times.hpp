// The moments of a sequence's life -> how long each part of it took.
#pragma once
#include <algorithm>

#include "request.hpp"

namespace slipway {

struct RequestTimes {
  double queue_s, ttft_s, total_s, inter_token_s;  // what never came counts until the end; inter-token: the mean, 0 for one token

  explicit RequestTimes(const Metrics& m) {
    const double end = m.finished_s.value_or(m.arrival_s), first = m.first_token_s.value_or(end);
    queue_s = m.first_scheduled_s.value_or(end) - m.arrival_s;
    ttft_s = first - m.arrival_s;
    total_s = end - m.arrival_s;
    inter_token_s = (end - first) / std::max(1, m.output_tokens - 1);
  }
};

}  // namespace slipway
