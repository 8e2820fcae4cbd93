#include "candidates.hpp"

#include <algorithm>
#include <cmath>

namespace slipway {
namespace {

bool better(const Candidate& a, const Candidate& b) { return a.score != b.score ? a.score > b.score : a.token < b.token; }

void sort_by_token(Candidates& candidates) { std::ranges::sort(candidates, {}, &Candidate::token); }

// Quickselect on mass: halves the range in which the prefix's end must lie, so nothing is sorted that is not kept.
template <class Before> void keep_mass(Candidates& candidates, double target, Before before) {
  size_t low = 0, high = candidates.size();
  double before_low = 0;
  while (high - low > 1) {
    const size_t middle = low + (high - low) / 2;
    const auto at = [&](size_t i) { return candidates.begin() + static_cast<ptrdiff_t>(i); };
    std::nth_element(at(low), at(middle), at(high), before);
    double part = 0;
    for (size_t i = low; i < middle; ++i) part += static_cast<double>(candidates[i].weight);
    if (before_low + part >= target) {
      high = middle;
    } else {
      before_low += part;
      low = middle;
    }
  }
  candidates.resize(high);
  sort_by_token(candidates);
}

}  // namespace

double mass(const Candidates& candidates) {
  double sum = 0;
  for (const Candidate& candidate : candidates) sum += static_cast<double>(candidate.weight);
  return sum;
}

void keep_top_k(Candidates& candidates, size_t k) {
  if (k >= candidates.size()) return;
  std::nth_element(candidates.begin(), candidates.begin() + static_cast<ptrdiff_t>(k), candidates.end(), better);
  candidates.resize(k);
  sort_by_token(candidates);
}

void keep_top_p(Candidates& candidates, double target_mass) { keep_mass(candidates, target_mass, better); }

void keep_typical(Candidates& candidates, float typical_p) {
  const double total = mass(candidates);
  double expected = 0;  // surprise - entropy = expected score - score
  for (const Candidate& c : candidates)
    if (c.weight > 0) expected += static_cast<double>(c.weight) / total * static_cast<double>(c.score);
  const auto distance = [expected](const Candidate& c) { return std::abs(expected - static_cast<double>(c.score)); };
  keep_mass(candidates, static_cast<double>(typical_p) * total, [&](const Candidate& a, const Candidate& b) {
    const double x = distance(a), y = distance(b);
    return x != y ? x < y : a.token < b.token;
  });
}

void keep_min_p(Candidates& candidates, float min_p) {
  const float best = std::ranges::max(candidates, {}, &Candidate::weight).weight;
  std::erase_if(candidates, [limit = min_p * best](const Candidate& c) { return c.weight < limit; });
}

int32_t draw(const Candidates& candidates, double uniform) {
  double left = uniform * mass(candidates);
  int32_t last = candidates.front().token;
  for (const Candidate& candidate : candidates) {
    if (candidate.weight <= 0) continue;
    last = candidate.token;
    left -= static_cast<double>(candidate.weight);
    if (left < 0) break;
  }
  return last;  // rounding may leave a trace of mass: then the last one
}

}  // namespace slipway
