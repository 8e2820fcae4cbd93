// Query rows times lines of a KV block, each line 16 tokens or 16 columns: processors without AMX, and decoding.
//
// Each row's sums run in the order of the positions (or of the dimensions), whatever else is in the tile.
#pragma once
#include <algorithm>
#include <bit>

#include "paged_attention/layout.hpp"
#include "slipway/unroll.hpp"

namespace slipway::paged_attention {

#if defined(__AVX512F__)
inline constexpr int most_rows = 8, most_sums = 24;  // query rows multiplied at a time; vectors of sums that registers hold
#else
inline constexpr int most_rows = 4, most_sums = 4;
#endif

// How often Sums step on a fetch in so many bytes.
template <class Sums>
constexpr int64_t steps_of(int64_t bytes) {
  return (bytes / 64 + Sums::lines_a_step - 1) / Sums::lines_a_step;
}

// Calls body with `most_rows` rows at a time, then with those left, as a constant; the first rows with `fetch`, the others with an
// empty one.
template <class Body>
void each_row_group(int rows, Fetch& fetch, Body body) {
  Fetch none;
  for (int row = 0; row < rows; row += most_rows) {
    with_constant<most_rows>(std::min(most_rows, rows - row), [&](auto count) { body(row, count, row == 0 ? fetch : none); });
  }
}

// Probabilities times the values of all blocks, as many tiles of 16 columns at a time as there are registers for: what lies
// together in memory is read together. Sums<rows> takes `vectors` registers a row; add(sums, row, block, tile, fetch) adds a tile of
// a block, write(row, column, sums, r) takes the sums of row + r.
template <class Shape, int64_t tile_bytes, int vectors, template <int> class Sums, class Add, class Write>
void stream_values(int rows, const Blocks& blocks, Fetch& fetch, Add add, Write write) {
  constexpr int tiles = Layout<Shape>::columns / lanes;
  each_row_group(rows, fetch, [&](int row, auto count, Fetch& of_group) {
    constexpr int held = std::min<int>({tiles, 8, std::max(1, static_cast<int>(std::bit_floor(unsigned{most_sums} / (count * vectors))))});
    constexpr int parts = (tiles + held - 1) / held;
    for (int part = 0; part < parts; ++part) {
      const int last = tiles - 1 - part * held;  // tiles of the last part beyond it repeat it
      Sums<count> sums[held];
      for (int b = 0; b < blocks.count; ++b) {
        const std::byte* values = blocks.heads[b] + Shape::Cache::values_at + part * held * tile_bytes;
        unrolled<held>([&](auto t) __attribute__((always_inline)) { add(sums[t], row, b, values + std::min<int>(t, last) * tile_bytes, of_group); });
      }
      unrolled<held>([&](auto t) __attribute__((always_inline)) {
        const int column = (part * held + std::min<int>(t, last)) * lanes;
        unrolled<count>([&](auto r) __attribute__((always_inline)) { write(row, column, sums[t], r); });
      });
    }
  });
}

}  // namespace slipway::paged_attention
