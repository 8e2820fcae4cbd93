#include "candidates.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <iterator>
#include <utility>

namespace slipway {
namespace {

bool better(const Candidate& a, const Candidate& b) { return a.score != b.score ? a.score > b.score : a.token < b.token; }

// Everything up to `last` in the order `before`; what stays keeps its place.
template <class Before> void keep_up_to(Candidates& candidates, const Candidate& last, Before before) {
  std::erase_if(candidates, [&](const Candidate& candidate) { return before(last, candidate); });
}

// The last one of the shortest prefix in the order `before` that reaches the mass: quickselect, nothing is sorted.
template <class Before> Candidate last_of_mass(Candidates order, double target, Before before) {
  auto low = order.begin(), high = order.end();
  while (high - low > 1) {
    const auto middle = low + (high - low) / 2;
    std::nth_element(low, middle, high, before);
    double part = 0;
    for (auto at = low; at != middle; ++at) part += static_cast<double>(at->weight);
    if (part >= target) {
      high = middle;
    } else {
      target -= part;
      low = middle;
    }
  }
  return *low;
}

// The shortest prefix in the order (key, id), both ascending and keys >= 0, that reaches the mass. A histogram of the
// keys finds the bin in which it ends, and only that bin is looked into.
template <class Key> void keep_mass(Candidates& candidates, double target, Key key) {
  constexpr size_t num_bins = 2048;
  constexpr double bins_per_unit = 128;
  const auto bin = [&](const Candidate& c) { return static_cast<size_t>(std::min(key(c) * bins_per_unit, double{num_bins - 1})); };
  std::array<double, num_bins> bins{};
  for (const Candidate& c : candidates) bins[bin(c)] += static_cast<double>(c.weight);
  size_t end = 0;
  while (end + 1 < num_bins && bins[end] < target) target -= bins[end++];
  Candidates inside;
  std::ranges::copy_if(candidates, std::back_inserter(inside), [&](const Candidate& c) { return bin(c) == end; });
  if (inside.empty()) return;  // rounding: all of the mass falls short of the target
  const auto before = [&](const Candidate& a, const Candidate& b) {
    const double x = key(a), y = key(b);
    return x != y ? x < y : a.token < b.token;
  };
  keep_up_to(candidates, last_of_mass(std::move(inside), target, before), before);
}

}  // namespace

double mass(const Candidates& candidates) {
  double sum = 0;
  for (const Candidate& candidate : candidates) sum += static_cast<double>(candidate.weight);
  return sum;
}

void keep_top_k(Candidates& candidates, size_t k) {
  if (k >= candidates.size()) return;
  Candidates order = candidates;
  const auto last = order.begin() + static_cast<ptrdiff_t>(k) - 1;
  std::nth_element(order.begin(), last, order.end(), better);
  keep_up_to(candidates, *last, better);
}

void keep_top_p(Candidates& candidates, double target_mass) {
  keep_mass(candidates, target_mass, [](const Candidate& c) { return -static_cast<double>(c.score); });
}

void keep_typical(Candidates& candidates, float typical_p) {
  const double total = mass(candidates);
  double expected = 0;  // surprise - entropy = expected score - score
  for (const Candidate& c : candidates)
    if (c.weight > 0) expected += static_cast<double>(c.weight) / total * static_cast<double>(c.score);
  const auto distance = [expected](const Candidate& c) { return std::abs(expected - static_cast<double>(c.score)); };
  keep_mass(candidates, static_cast<double>(typical_p) * total, distance);
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
