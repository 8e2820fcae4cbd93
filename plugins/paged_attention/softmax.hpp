// Scores -> probabilities of one chunk, and the merge of chunks.
#pragma once
#include "paged_attention/layout.hpp"

namespace slipway::paged_attention {

// A range of positions, counted from the chunk's first.
struct Positions {
  int begin, end;
};

// Scores come in units of log2; so does the cap.
template <class Shape>
f32x16 capped(f32x16 score) {
  if constexpr (Shape::softcap == 0) return score;
  constexpr float cap = Shape::softcap * log2e;
  const f32x16 one = f32x16::splat(1), power = exp2(score * f32x16::splat(2 * log2e / cap));
  return f32x16::splat(cap) * (one - f32x16::splat(2) / (power + one));  // cap * tanh(score / cap)
}

// The greatest score of a row that is `seen`; caps the scores.
template <class Shape>
float find_peak(float* row, Positions seen) {
  const auto score = [&](int v) {
    const f32x16 x = capped<Shape>(load(row + v * score_stride));
    if constexpr (Shape::softcap != 0) store(row + v * score_stride, x);
    return x;
  };
  const auto edge = [&](int v) {
    return select_lanes(score(v), f32x16::splat(nothing), seen.begin - v * lanes, seen.end - v * lanes);
  };
  const int first = seen.begin / lanes, last = (seen.end - 1) / lanes;
  f32x16 even = edge(first), odd = first < last ? edge(last) : even;
  int v = first + 1;
  for (; v + 1 < last; v += 2) even = max(even, score(v)), odd = max(odd, score(v + 1));
  if (v < last) even = max(even, score(v));
  return reduce_max(max(even, odd));
}

// Turns the scores of a row that are `seen` into exp2(score - peak), the others of `computed` into zeros; returns the sum.
template <class Shape>
float exponentiate(float* row, Positions seen, Positions computed, float peak) {
  const f32x16 zero = f32x16::splat(0), top = f32x16::splat(peak);
  f32x16 even = zero, odd = zero;
  for (int p = computed.begin; p < computed.end; p += block_size) {
    float* at = row + p / lanes * score_stride;
    if (p + block_size <= seen.begin || p >= seen.end) {
      store_probabilities(at, zero, zero);
      continue;
    }
    f32x16 first = exp2(load(at) - top), second = exp2(load(at + score_stride) - top);
    if (p < seen.begin || p + block_size > seen.end) {
      first = select_lanes(first, zero, seen.begin - p, seen.end - p);
      second = select_lanes(second, zero, seen.begin - p - lanes, seen.end - p - lanes);
    }
    even = even + first, odd = odd + second;
    store_probabilities(at, first, second);
  }
  return reduce_add(even + odd);
}

// Adds the next chunk to what came before it. The same for every row, so no row's bits depend on who merges it.
template <int head_dim>
void merge(State<head_dim>& into, const State<head_dim>& next, int rows) {
  for (int r = 0; r < rows; ++r) {
    if (next.peak[r] == nothing) continue;
    if (into.peak[r] == nothing) {
      into.peak[r] = next.peak[r], into.sum[r] = next.sum[r];
      std::memcpy(into.out[r], next.out[r], sizeof into.out[r]);
      continue;
    }
    const float peak = std::max(into.peak[r], next.peak[r]);
    const f32x16 old_scale = exp2(f32x16::splat(into.peak[r] - peak)), new_scale = exp2(f32x16::splat(next.peak[r] - peak));
    alignas(64) float sums[16];
    store(sums, fma(f32x16::splat(into.sum[r]), old_scale, f32x16::splat(next.sum[r]) * new_scale));
    into.peak[r] = peak, into.sum[r] = sums[0];
    for_columns<head_dim>([&](int c, int used) {
      const f32x16 out = fma(load(into.out[r] + c, used), old_scale, load(next.out[r] + c, used) * new_scale);
      store(into.out[r] + c, out, used);
    });
  }
}

}  // namespace slipway::paged_attention
