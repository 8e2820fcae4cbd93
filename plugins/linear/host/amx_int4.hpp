// int4 on AMX: a group's codes become two int8 tiles, are multiplied with fixed-point rows, and fold into float32 sums.
#pragma once
#include "linear/host/amx.hpp"

#if defined(__AMX_TILE__)
namespace slipway::linear {

// Codes of one group as B tiles, [k step][2][quads][16][4] bytes.
template <class Weights>
void spread_nibbles(const std::byte* codes, std::byte* tiles) {
  constexpr int quads = std::min(16, Weights::block_k / 4), steps = Weights::block_k / 4 / quads;
  const __m512i nibble = _mm512_set1_epi8(0x0f);
  for (int step = 0; step < steps; ++step, tiles += 2 * quads * 64)
    for (int quad = 0; quad < quads; ++quad, codes += 64) {
      const __m512i both = _mm512_load_si512(codes);
      _mm512_store_si512(tiles + quad * 64, _mm512_and_si512(both, nibble));
      _mm512_store_si512(tiles + (quads + quad) * 64, _mm512_and_si512(_mm512_srli_epi16(both, 4), nibble));
    }
}

// Sums of `row_tiles` A tiles (8 rows each) for one group go through `scratch` into totals[8 * row_tiles][2].
template <class P, int row_tiles>
void multiply_group(const FixedRows<P>& rows, int64_t first_tile, int group, const std::byte* b, std::byte* scratch,
                    const GroupHeader<typename P::Weights>& header, f32x16 (*totals)[2]) {
  using Weights = typename P::Weights;
  constexpr int steps = std::max(1, Weights::block_k / 64), b_bytes = std::min(1024, Weights::block_k * 16);
  const int64_t k = int64_t{group} * Weights::block_k;
  const std::byte* a = rows.tiles + first_tile * FixedRows<P>::tile_row_bytes + k / 64 * 1024 + k % 64;
  clear_sums<row_tiles>();
  for (int step = 0; step < steps; ++step)
    multiply_step<Weights, row_tiles, b_bytes>(a + step * 1024, a + FixedRows<P>::tile_row_bytes + step * 1024, b + step * 2 * b_bytes);
  store_sums<row_tiles>(scratch);
  const int32_t* row_sums = rows.sums + group * rows.padded + first_tile * 8;
  for (int row = 0; row < row_tiles * 8; ++row, scratch += 2 * sums_row_bytes)
    for (int tile = 0; tile < 2; ++tile)
      totals[row][tile] = header.fold(tile, _mm512_load_si512(scratch + tile * 64),
                                      _mm512_load_si512(scratch + sums_row_bytes + tile * 64), row_sums[row], totals[row][tile]);
}

// Up to `max_tiles` A tiles of rows against one panel.
template <class P, int max_tiles>
void multiply_panel(const Call& call, const FixedRows<P>& rows, int64_t first_tile, int64_t tiles, const std::byte* panel,
                    const Ahead& ahead, int64_t index, const Output<P>& output) {
  using Weights = typename P::Weights;
  alignas(64) std::byte codes[2 * 16 * Weights::block_k], scratch[2 * sums_tile_bytes];
  f32x16 totals[max_tiles * 8][2];
  for (int row = 0; row < tiles * 8; ++row) totals[row][0] = totals[row][1] = f32x16::splat(0);
  for (int b = 0; b < P::blocks; ++b) {
    const std::byte* block = panel + int64_t{b} * Weights::block_bytes;
    ahead.at(int64_t{b} * Weights::block_bytes, Weights::block_bytes);
    spread_nibbles<Weights>(block + Weights::header_bytes, codes);
    asm volatile("" ::: "memory");
    const GroupHeader<Weights> header(block);
    int tile = 0;
    for (; tile + 2 <= tiles; tile += 2) multiply_group<P, 2>(rows, first_tile + tile, b, codes, scratch, header, totals + tile * 8);
    if (tile < tiles) multiply_group<P, 1>(rows, first_tile + tile, b, codes, scratch, header, totals + tile * 8);
  }
  const int64_t begin = first_tile * 8, end = std::min<int64_t>(begin + tiles * 8, call.rows);
  for (int64_t row = begin; row < end; ++row) {
    const f32x16 scale = f32x16::splat(rows.scales[row]);
    output(row, index, totals[row - begin][0] * scale, totals[row - begin][1] * scale);
  }
}

template <class P>
void run_amx_int4(const Call& call, const float* bias) {
  constexpr int max_tiles = 8;
  configure_tiles<std::min(64, P::Weights::block_k)>();
  PanelStream<P> stream(call);
  prefetch(P::panel(call, stream.first()), Ahead::distance);
  const FixedRows<P> rows = pack_rows<P, FixedRows<P>>(call);
  const Output<P> output{call.outputs[0], bias};
  const int64_t tiles = ceil_div(call.rows, 8);
  stream.each([&](int64_t index, int64_t following) {
    const std::byte* panel = P::panel(call, index);
    const Ahead ahead{panel, P::panel(call, following), P::panel_bytes};
    for (int64_t tile = 0; tile < tiles; tile += max_tiles)
      multiply_panel<P, max_tiles>(call, rows, tile, std::min<int64_t>(max_tiles, tiles - tile), panel, ahead, index, output);
  });
}

}  // namespace slipway::linear
#endif
