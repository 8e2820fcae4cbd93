// AMX: tile registers 0..3 hold C (2 x 2), 4 and 5 A (rows), 6 and 7 B (columns). bf16 and integer tiles have equal bytes.
#pragma once
#include "linear/host/integers.hpp"

#if defined(__AMX_TILE__)
namespace slipway::linear {

// first_rows, second_rows: of A and C tiles; a tile with few rows loads only those. a_bytes: of k in a row of A, 64 except
// for int4 in groups of 32.
inline void configure_tiles(int64_t first_rows = 16, int64_t second_rows = 16, int a_bytes = 64) {
  struct alignas(64) {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t column_bytes[16] = {};
    uint8_t rows[16] = {};
  } config;
  const uint8_t a_rows[2] = {static_cast<uint8_t>(first_rows), static_cast<uint8_t>(second_rows)};
  for (int tile = 0; tile < 8; ++tile) {
    const bool is_a = tile == 4 || tile == 5;
    config.column_bytes[tile] = is_a ? static_cast<uint16_t>(a_bytes) : 64;
    config.rows[tile] = tile < 4 ? a_rows[tile / 2] : is_a ? a_rows[tile - 4] : static_cast<uint8_t>(a_bytes / 4);
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

// One k step. a1: the second row tile, used if row_tiles is 2; b: two column tiles, `b_stride` bytes apart. fetch(column tile)
// asks for memory that later steps need; in two parts, since a burst of requests holds up the loads behind it.
template <class Weights, int row_tiles, int b_stride = 1024, class Fetch>
void multiply_step(const std::byte* a0, const std::byte* a1, const std::byte* b, Fetch fetch) {
  fetch(0);
  _tile_loadd(6, b, 64);
  _tile_loadd(4, a0, 64);
  multiply_00<Weights>();
  fetch(1);
  _tile_loadd(7, b + b_stride, 64);
  multiply_01<Weights>();
  if constexpr (row_tiles == 2) {
    _tile_loadd(5, a1, 64);
    multiply_10<Weights>();
    multiply_11<Weights>();
  }
}

template <class P>
using TileRows = std::conditional_t<P::Weights::integer, FixedRows<P>, Bf16Rows<P>>;

// Outputs of one A tile's rows from their sums; not for int4, whose groups fold on their own.
template <class P>
void finish_tile(const Call& call, const TileRows<P>& rows, int64_t tile, const std::byte* sums, int64_t index, const Output<P>& output) {
  constexpr int rows_per_tile = 16 / TileRows<P>::planes;
  const int64_t begin = tile * rows_per_tile, end = std::min<int64_t>(begin + rows_per_tile, call.rows);
  for (int64_t row = begin; row < end; ++row, sums += TileRows<P>::planes * sums_row_bytes) {
    if constexpr (P::Weights::integer) {
      const float* scales = reinterpret_cast<const float*>(P::panel(call, P::panels)) + index * 32;
      const auto finished = [&](int column) {
        return finish_int8(rows, row, _mm512_load_si512(sums + column), _mm512_load_si512(sums + sums_row_bytes + column),
                           load(scales + column / 4));
      };
      output(row, index, finished(0), finished(64));
    } else {
      const float* values = reinterpret_cast<const float*>(sums);
      output(row, index, load(values), load(values + 16));
    }
  }
}

// At most two A tiles of rows: each panel streams through once.
template <class P, int row_tiles>
void run_amx_stream(const Call& call, const float* bias) {
  using Rows = TileRows<P>;
  const int64_t a_rows = call.rows * Rows::planes;
  configure_tiles(std::min<int64_t>(a_rows, 16), std::max<int64_t>(a_rows - 16, 1));
  Stream<panel_chunk<P>> stream(call, P::panels);
  prefetch(P::panel(call, stream.first()), Ahead::distance);
  const Rows rows = pack_rows<P, Rows>(call);
  const Output<P> output{call.outputs[0], bias};
  alignas(64) std::byte sums[row_tiles * sums_tile_bytes];
  stream.each([&](int64_t index, int64_t following) {
    const std::byte* panel = P::panel(call, index);
    const Ahead ahead{panel, P::panel(call, following), P::panel_bytes};
    output.expect(0, call.rows, index);
    clear_sums<row_tiles>();
    for (int64_t step = 0; step < P::blocks; ++step) {
      const std::byte* a = rows.tiles + step * 1024;
      multiply_step<typename P::Weights, row_tiles>(a, a + Rows::tile_row_bytes, panel + step * 2048,
                                                    [&](int tile) { ahead.at(step * 2048 + tile * 1024, 1024); });
    }
    store_sums<row_tiles>(sums);
    for (int tile = 0; tile < row_tiles; ++tile) finish_tile<P>(call, rows, tile, sums + tile * sums_tile_bytes, index, output);
  });
}

}  // namespace slipway::linear
#endif
