// Vectorised passes over one row of logits.
//
// A row is cut into chunks of 1024 logits; within a chunk, logits whose index is equal modulo 8 form a group. The maxima of the
// groups bound the best logits from below: the k-th largest group maximum is at most the k-th largest logit. So a
// threshold for the best k costs a selection among groups, and only chunks that reach it are read again.
#pragma once
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace slipway {

inline constexpr size_t row_lanes = 8, row_chunk = 1024;

struct RowScan {
  std::vector<float> group_max;  // [chunks, row_lanes]
  float max = 0;
  bool valid = false;            // neither NaN nor +inf
};

// Scratch in `scan` is reused.
void scan_row(std::span<const float> row, RowScan& scan);

// The lowest id among the largest logits.
int32_t best_token(std::span<const float> row, const RowScan& scan);

// A threshold that at least `count` logits reach, if there are as many; the lowest float, which -inf does not reach, otherwise.
float threshold_of_best(const RowScan& scan, size_t count, std::vector<float>& scratch);

// Ids, ascending, of the logits that reach `threshold`.
void tokens_from(std::span<const float> row, const RowScan& scan, float threshold, std::vector<int32_t>& tokens);

// weights[i] = exp((row[i] - max) * scale), and sums of whole chunks; both in the order of ids.
void weigh_row(std::span<const float> row, float max, float scale, std::span<float> weights, std::vector<double>& chunk_sums);

}  // namespace slipway
