// int4 on AMX: a group's codes become two int8 tiles, are multiplied with fixed-point rows, and fold into float32 sums.
#pragma once
#include "linear/host/amx.hpp"

#if defined(__AMX_TILE__)
namespace slipway::linear {

// Codes of a block as B tiles, [k step][2][quads][16][4] bytes; meanwhile `next` is fetched.
template <class Weights>
void spread_nibbles(const std::byte* block, const std::byte* next, std::byte* tiles) {
  constexpr int quads = std::min(16, Weights::block_k / 4), steps = Weights::block_k / 4 / quads;
  const __m512i nibble = _mm512_set1_epi8(0x0f);
  prefetch<Weights::header_bytes>(next);
  block += Weights::header_bytes, next += Weights::header_bytes;
  for (int step = 0; step < steps; ++step, tiles += 2 * quads * 64)
    for (int quad = 0; quad < quads; ++quad, block += 64, next += 64) {
      prefetch<64>(next);
      const __m512i both = _mm512_load_si512(block);
      _mm512_store_si512(tiles + quad * 64, _mm512_and_si512(both, nibble));
      _mm512_store_si512(tiles + (quads + quad) * 64, _mm512_and_si512(_mm512_srli_epi16(both, 4), nibble));
    }
}

// Up to `max_tiles` A tiles of rows (8 rows each) against one panel. Tiles go in pairs; while the matrix unit works on one
// pair, the sums of the pair before fold, or the next group's codes spread.
template <class P, int max_tiles>
class Int4Panel {
  using Weights = typename P::Weights;
  using Rows = FixedRows<P>;
  static constexpr int steps = std::max(1, Weights::block_k / 64), b_bytes = std::min(1024, Weights::block_k * 16);

 public:
  Int4Panel(const Rows& rows, int64_t first_tile, int tiles, const Ahead<P>& ahead)
      : rows_(rows), first_tile_(first_tile), tiles_(tiles), ahead_(ahead) {}

  void multiply() {
    for (int row = 0; row < tiles_ * 8; ++row) totals[row][0] = totals[row][1] = f32x16::splat(0);
    spread(0);
    for (int group = 0; group < P::blocks; ++group) {
      asm volatile("" ::: "memory");
      for (int tile = 0; tile < tiles_; tile += 2) tile + 1 < tiles_ ? multiply_pair<2>(group, tile) : multiply_pair<1>(group, tile);
    }
    fold();
  }

  f32x16 totals[max_tiles * 8][2];

 private:
  void spread(int group) { spread_nibbles<Weights>(block(group), ahead_.block(group), codes_[group % 2]); }

  template <int row_tiles>
  void multiply_pair(int group, int tile) {
    const int64_t k = int64_t{group} * Weights::block_k;
    const std::byte* a = rows_.tiles + (first_tile_ + tile) * Rows::tile_row_bytes + k / 64 * 1024 + k % 64;
    clear_sums<row_tiles>();
    for (int step = 0; step < steps; ++step)
      multiply_step<Weights, row_tiles, b_bytes>(a + step * 1024, a + Rows::tile_row_bytes + step * 1024,
                                                 codes_[group % 2] + step * 2 * b_bytes, [](int) {});
    if (tile == 0 && group + 1 < P::blocks) spread(group + 1);
    if (group + tile) fold();
    store_sums<row_tiles>(sums_);
    unfolded_group_ = group, unfolded_tile_ = tile, unfolded_rows_ = row_tiles * 8;
  }

  void fold() {
    const GroupHeader<Weights> header(block(unfolded_group_));
    const int32_t* row_sums = rows_.sums + unfolded_group_ * rows_.padded + (first_tile_ + unfolded_tile_) * 8;
    const std::byte* sums = sums_;
    for (int row = 0; row < unfolded_rows_; ++row, sums += 2 * sums_row_bytes)
      for (int tile = 0; tile < 2; ++tile) {
        f32x16& total = totals[unfolded_tile_ * 8 + row][tile];
        total = header.fold(tile, _mm512_load_si512(sums + tile * 64), _mm512_load_si512(sums + sums_row_bytes + tile * 64),
                            row_sums[row], total);
      }
  }

  const std::byte* block(int group) const { return ahead_.panel + int64_t{group} * Weights::block_bytes; }

  const Rows& rows_;
  const int64_t first_tile_;
  const int tiles_;
  const Ahead<P>& ahead_;
  int unfolded_group_ = 0, unfolded_tile_ = 0, unfolded_rows_ = 0;
  alignas(64) std::byte codes_[2][2 * 16 * Weights::block_k];
  alignas(64) std::byte sums_[2 * sums_tile_bytes];
};

// Rows go in blocks that stay in L2, panel after panel for each.
template <class P>
void run_amx_int4(const Call& call, const float* bias) {
  constexpr int max_tiles = 8;
  constexpr int64_t block_tiles = std::max<int64_t>(1, row_block_bytes / FixedRows<P>::tile_row_bytes / max_tiles) * max_tiles;
  configure_tiles(std::min(16, call.rows * 2), 16, std::min(64, P::Weights::block_k));
  const int64_t tiles = ceil_div(call.rows, 8);
  Stream<panel_chunk<P>> stream(call, ceil_div(tiles, block_tiles) * P::panels);
  Ahead<P>::begin(P::panel(call, stream.first() % P::panels));
  const FixedRows<P> rows = pack_rows<P, FixedRows<P>>(call);
  const Output<P> output(call, bias);
  stream.each([&](int64_t item, int64_t following) {
    const int64_t index = item % P::panels, begin = item / P::panels * block_tiles, end = std::min(begin + block_tiles, tiles);
    const Ahead<P> ahead{P::panel(call, index), P::panel(call, following % P::panels)};
    for (int64_t tile = begin; tile < end; tile += max_tiles) {
      const int64_t first_row = tile * 8, end_row = std::min<int64_t>(first_row + max_tiles * 8, call.rows);
      Int4Panel<P, max_tiles> part(rows, tile, static_cast<int>(std::min<int64_t>(max_tiles, end - tile)), ahead);
      part.multiply();
      for (int64_t row = first_row; row < end_row; ++row) {
        const f32x16 scale = f32x16::splat(rows.scales[row]);
        output(row, index, part.totals[row - first_row][0] * scale, part.totals[row - first_row][1] * scale);
      }
    }
  });
}

}  // namespace slipway::linear
#endif
