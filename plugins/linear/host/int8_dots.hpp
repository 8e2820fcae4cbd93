// Integer weights multiplied by dot products of four bytes: AVX-512 with VNNI, without AMX.
//
// Activations are int8 too, with a scale for each row and block of weights: sums of a block are exact integers, sums of blocks
// float32. int4 weights spread as they stream by, or once for all passes.
#pragma once
#include "linear/host/ladder.hpp"
#include "linear/host/passes.hpp"
#include "linear/host/rows.hpp"

#if defined(__AVX512VNNI__) && !defined(__AMX_TILE__)
namespace slipway::linear {

template <class P>
constexpr int block_quads = P::Weights::block_k / 4;

// Where the int8 weights of a panel come from. Calls use(quad, tile as a constant, calls before, weights) for every four inputs of
// a block and column tile.
template <class P>
struct StoredWeights {
  const std::byte* panel;

  template <class Use>
  [[gnu::always_inline]] void each(int64_t block, Use use) const {
    const std::byte* at = panel + block * 64 * 2 * block_quads<P>;
    each_line<block_quads<P>>([&](int quad, auto tile, int step) __attribute__((always_inline)) {
      use(quad, tile, step, _mm512_load_si512(at + (tile * block_quads<P> + quad) * 64));
    });
  }
};

template <class P>
struct CodedWeights {
  const std::byte* panel;

  template <class Use>
  [[gnu::always_inline]] void each(int64_t block, Use use) const {
    using Weights = typename P::Weights;
    const std::byte* at = panel + block * Weights::block_bytes;
    const Ladders<Weights> ladders(at);
#pragma GCC unroll 32
    for (int quad = 0; quad < block_quads<P>; ++quad) {
      const __m512i nibbles = _mm512_load_si512(at + Weights::header_bytes + quad * 64);
      unrolled<2>([&](auto tile) __attribute__((always_inline)) {
        use(quad, tile, 2 * quad + tile, ladders.template weights<tile>(nibbles));
      });
    }
  }
};

template <class P>
void spread(const CodedWeights<P>& coded, std::byte* to) {
  for (int64_t b = 0; b < P::blocks; ++b, to += 64 * 2 * block_quads<P>)
    coded.each(b, [&](int quad, auto tile, int, __m512i weights) { _mm512_store_si512(to + (tile * block_quads<P> + quad) * 64, weights); });
}

template <class P, int count, class Source, class Fetch>
void multiply_rows(const ByteRows<P>& rows, int64_t row, const Source& weights, Fetch fetch, const float* scales, int64_t index,
                   const Output<P>& output) {
  const std::byte* x = rows.row(row);
  output.expect(row, count, index);
  f32x16 sums[count][2];
  unrolled<count>([&](auto r) __attribute__((always_inline)) { sums[r][0] = sums[r][1] = f32x16::splat(0); });
  for (int64_t b = 0; b < P::blocks; ++b, x += ByteRows<P>::block_bytes) {
    __m512i block[count][2];
    unrolled<count>([&](auto r) __attribute__((always_inline)) {
      block[r][0] = block[r][1] = splat_word(x + r * ByteRows<P>::row_bytes + ByteRows<P>::start_at);
    });
    fetch.begin(b);
    weights.each(b, [&](int quad, auto tile, int step, __m512i of_tile) __attribute__((always_inline)) {
      fetch.template part<2 * block_quads<P>>(step);
      unrolled<count>([&](auto r) __attribute__((always_inline)) {
        block[r][tile] = _mm512_dpbusd_epi32(block[r][tile], of_tile, splat_word(x + r * ByteRows<P>::row_bytes + quad * 4));
      });
    });
    unrolled<count>([&](auto r) __attribute__((always_inline)) {
      const f32x16 scale = {_mm512_castsi512_ps(splat_word(x + r * ByteRows<P>::row_bytes + ByteRows<P>::scale_at))};
      sums[r][0] = fma(scale, {_mm512_cvtepi32_ps(block[r][0])}, sums[r][0]);
      sums[r][1] = fma(scale, {_mm512_cvtepi32_ps(block[r][1])}, sums[r][1]);
    });
  }
  unrolled<count>([&](auto r) __attribute__((always_inline)) {
    output(row + r, index, sums[r][0] * load(scales), sums[r][1] * load(scales + 16));
  });
}

// spread_panel: room for the int8 weights of an int4 panel.
template <class P>
void run_int8_dots(const Call& call, std::byte* spread_panel, const float* bias) {
  constexpr int most_rows = 6;
  Stream<panel_chunk<P>> stream(call, P::panels);
  LoneAhead<P>::begin(P::panel(call, stream.first()));
  const ByteRows<P> rows = pack_rows<P, ByteRows<P>>(call);
  const Output<P> output(call, bias);
  each_pass<P, most_rows>(call, stream, [&](int64_t row, auto count, int64_t index, const std::byte* panel, auto fetch) {
    const auto multiply = [&](const auto& weights) { multiply_rows<P, count>(rows, row, weights, fetch, P::scales(call, index), index, output); };
    if constexpr (!P::Weights::grouped) {
      multiply(StoredWeights<P>{panel});
    } else if constexpr (decltype(fetch)::is_lone) {
      multiply(CodedWeights<P>{panel});
    } else {
      if (row == 0) spread(CodedWeights<P>{panel}, spread_panel);
      multiply(StoredWeights<P>{spread_panel});
    }
  });
}

}  // namespace slipway::linear
#endif
