// AMX: tile registers 0..3 hold C (2 x 2), 4 and 5 A (rows), 6 and 7 B (columns). bf16 and integer tiles have equal bytes.
#pragma once
#include "linear/host/rows.hpp"

#if defined(__AMX_TILE__)
namespace slipway::linear {

// first_rows, second_rows: of A and C tiles; a tile with few rows loads only those.
inline void configure_tiles(int64_t first_rows = 16, int64_t second_rows = 16) {
  struct alignas(64) {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t column_bytes[16] = {};
    uint8_t rows[16] = {};
  } config;
  const uint8_t a_rows[2] = {static_cast<uint8_t>(first_rows), static_cast<uint8_t>(second_rows)};
  for (int tile = 0; tile < 8; ++tile) {
    config.column_bytes[tile] = 64;
    config.rows[tile] = tile < 4 ? a_rows[tile / 2] : tile < 6 ? a_rows[tile - 4] : 16;
  }
  asm volatile("" ::: "memory");  // gcc 12 may otherwise drop the stores that fill the configuration
  _tile_loadconfig(&config);
}

template <class Weights>
void multiply_00() {
  if constexpr (Weights::integer) _tile_dpbsud(0, 4, 6);
  else _tile_dpbf16ps(0, 4, 6);
}
template <class Weights>
void multiply_01() {
  if constexpr (Weights::integer) _tile_dpbsud(1, 4, 7);
  else _tile_dpbf16ps(1, 4, 7);
}
template <class Weights>
void multiply_10() {
  if constexpr (Weights::integer) _tile_dpbsud(2, 5, 6);
  else _tile_dpbf16ps(2, 5, 6);
}
template <class Weights>
void multiply_11() {
  if constexpr (Weights::integer) _tile_dpbsud(3, 5, 7);
  else _tile_dpbf16ps(3, 5, 7);
}

// C[row_tiles * 16][32] of 4-byte sums, in memory with 128 bytes a row.
inline constexpr int64_t sums_row_bytes = 128, sums_tile_bytes = 16 * sums_row_bytes;

template <int row_tiles>
void clear_sums() {
  _tile_zero(0);
  _tile_zero(1);
  if constexpr (row_tiles == 2) {
    _tile_zero(2);
    _tile_zero(3);
  }
}
template <int row_tiles>
void load_sums(const std::byte* c) {
  _tile_loadd(0, c, sums_row_bytes);
  _tile_loadd(1, c + 64, sums_row_bytes);
  if constexpr (row_tiles == 2) {
    _tile_loadd(2, c + sums_tile_bytes, sums_row_bytes);
    _tile_loadd(3, c + sums_tile_bytes + 64, sums_row_bytes);
  }
}
template <int row_tiles>
void store_sums(std::byte* c) {
  _tile_stored(0, c, sums_row_bytes);
  _tile_stored(1, c + 64, sums_row_bytes);
  if constexpr (row_tiles == 2) {
    _tile_stored(2, c + sums_tile_bytes, sums_row_bytes);
    _tile_stored(3, c + sums_tile_bytes + 64, sums_row_bytes);
  }
}

// One k step. a1: the second row tile, used if row_tiles is 2; b: two column tiles. After each of the 2 * row_tiles products it
// calls aside(its index): the matrix unit works beside the others only if their work comes in small portions.
template <class Weights, int row_tiles, class Aside>
void multiply_step(const std::byte* a0, const std::byte* a1, const std::byte* b, Aside aside) {
  _tile_loadd(6, b, 64);
  _tile_loadd(4, a0, 64);
  multiply_00<Weights>();
  aside(0);
  _tile_loadd(7, b + 1024, 64);
  multiply_01<Weights>();
  aside(1);
  if constexpr (row_tiles == 2) {
    _tile_loadd(5, a1, 64);
    multiply_10<Weights>();
    aside(2);
    multiply_11<Weights>();
    aside(3);
  }
}

// The two plane sums of a row and 16 columns, with the scales of the columns.
template <class P>
f32x16 finished(const FixedRows<P>& rows, int64_t row, __m512i high, __m512i low, f32x16 scale) {
  high = _mm512_sub_epi32(high, _mm512_set1_epi32(rows.sums[row]));
  low = _mm512_sub_epi32(low, _mm512_set1_epi32(rows.sums[rows.padded + row]));
  return from_planes(high, low) * (f32x16::splat(rows.scales[row]) * scale);
}

inline constexpr int64_t unit_steps = unit_k / 32;  // k steps of weights that have units

template <class P>
using TileRows = std::conditional_t<P::Weights::integer, FixedRows<P>, Bf16Rows<P>>;

// Adds a row's sums over the unit that ends with k step `end` to its totals, which the first unit begins.
template <class P>
void add_unit(const Call& call, const std::byte* sums, int64_t panel, int64_t end, std::byte* totals) {
  for (int tile = 0; tile < 2; ++tile) {
    float* total = reinterpret_cast<float*>(totals) + 16 * tile;
    const f32x16 sum = load(reinterpret_cast<const float*>(sums) + 16 * tile), before = end <= unit_steps ? f32x16::splat(0) : load(total);
    store(total, fma(sum, scale<P>(call, panel, tile, (end - 1) * 32), before));
  }
}

// A row's outputs of a panel from its sums over all inputs; if weights have units, from its totals.
template <class P, class Rows>
void finish_row(const Call& call, const Rows& rows, int64_t row, const std::byte* sums, int64_t panel, const Output<P>& output) {
  if constexpr (Rows::planes == 2) {
    const float* scales = P::scales(call, panel);
    const auto half = [&](int column) {
      return finished(rows, row, _mm512_load_si512(sums + column), _mm512_load_si512(sums + sums_row_bytes + column),
                      load(scales + column / 4));
    };
    output(row, panel, half(0), half(64));
  } else {
    const float* values = reinterpret_cast<const float*>(sums);
    const auto half = [&](int tile) { return P::Weights::scaled ? load(values + 16 * tile) * scale<P>(call, panel, tile, 0) : load(values + 16 * tile); };
    output(row, panel, half(0), half(1));
  }
}

}  // namespace slipway::linear
#endif
