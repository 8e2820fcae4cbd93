// Scores -> their peaks, and the merge of chunks.
#pragma once
#include <algorithm>

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

// Caps the scores of a block, hides those that a row does not see, and folds the greatest of each row.
// seen: of each row, counted from the block's first position, or null when all rows see the whole block.
template <class Shape>
void fold_peaks(float* scores, int rows, const Positions* seen, Folds& peaks) {
  for (int r = 0; r < rows; ++r) {
    f32x16 peak = load(peaks[r]);
    for (int half = 0; half < block_size; half += lanes) {
      float* at = scores_at(scores, half, r);
      f32x16 score = capped<Shape>(load(at));
      if (seen) score = select_lanes(score, f32x16::splat(nothing), seen[r].begin - half, seen[r].end - half);
      if (seen || Shape::softcap != 0) store(at, score);
      peak = max(peak, score);
    }
    store(peaks[r], peak);
  }
}

// Adds the next chunk to what came before it. The same for every row, so no row's bits depend on who merges it.
template <int columns>
void merge(State<columns>& into, const State<columns>& next, int rows) {
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
    for (int c = 0; c < columns; c += lanes) {
      store(into.out[r] + c, fma(load(into.out[r] + c), old_scale, load(next.out[r] + c) * new_scale));
    }
  }
}

}  // namespace slipway::paged_attention
