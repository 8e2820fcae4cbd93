// The tokens that a draw may still choose, and the filters that thin them out.
//
// A list is in ascending order of ids, and stays so. Weights are proportional to
// probabilities: exp(score), the best token of the row having score 0.
#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

namespace slipway {

struct Candidate {
  int32_t token;
  float score;   // (logit - largest logit of the row) / temperature
  float weight;
};

using Candidates = std::vector<Candidate>;

double mass(const Candidates& candidates);

// Each keeps at least one of one or more. Order of tokens: score descending, id ascending.
void keep_top_k(Candidates& candidates, size_t k);
void keep_top_p(Candidates& candidates, double target_mass);   // the shortest prefix that reaches it
void keep_typical(Candidates& candidates, float typical_p);    // the same for |surprise - entropy| ascending, id ascending
void keep_min_p(Candidates& candidates, float min_p);          // those with min_p times the weight of the best

// Inverts the cumulative mass at uniform in [0, 1).
int32_t draw(const Candidates& candidates, double uniform);

}  // namespace slipway
