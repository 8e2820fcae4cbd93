// Integer weights multiplied by dot products of four bytes: AVX-512 with VNNI, without AMX.
//
// Activations are int8 too, with a scale for each row and block of weights: sums of a block are exact integers, sums of blocks
// float32. int4 weights spread as they stream by, or once for all passes.
#pragma once
#include <utility>

#include "linear/host/ladder.hpp"
#include "linear/host/passes.hpp"
#include "linear/host/rows.hpp"

#if defined(__AVX512VNNI__) && !defined(__AMX_TILE__)
namespace slipway::linear {

template <class P>
constexpr int block_quads = P::Weights::block_k / 4;

// Where the int8 weights of a panel come from: each<tile>(block, use) calls use(quad, weights) for every four inputs of a column tile.
template <class P>
struct StoredWeights {
  const std::byte* panel;

  template <int tile, class Use>
  [[gnu::always_inline]] void each(int64_t block, Use use) const {
    const std::byte* at = panel + (block * 2 + tile) * 64 * block_quads<P>;
#pragma GCC unroll 32
    for (int quad = 0; quad < block_quads<P>; ++quad) use(quad, _mm512_load_si512(at + quad * 64));
  }
};

template <class P>
struct CodedWeights {
  const std::byte* panel;

  template <int tile, class Use>
  [[gnu::always_inline]] void each(int64_t block, Use use) const {
    using Weights = typename P::Weights;
    const std::byte* at = panel + block * Weights::block_bytes;
    const Ladder<Weights, tile> ladder(at);
#pragma GCC unroll 32
    for (int quad = 0; quad < block_quads<P>; ++quad) {
      use(quad, ladder.weights(_mm512_load_si512(at + Weights::header_bytes + quad * 64)));
    }
  }
};

template <class P>
void spread(const CodedWeights<P>& coded, std::byte* to) {
  for (int64_t b = 0; b < P::blocks; ++b) {
    each_tile([&](auto tile) __attribute__((always_inline)) {
      coded.template each<tile>(b, [&](int quad, __m512i weights) { _mm512_store_si512(to + quad * 64, weights); });
      to += 64 * block_quads<P>;
    });
  }
}

template <class P, int count, class Source, class Fetch>
void multiply_rows(const Pass<P, ByteRows<P>>& pass, const Source& weights, Fetch fetch, const float* scales) {
  constexpr int quads = block_quads<P>;
  const std::byte* x = pass.rows.row(pass.row);
  pass.template begin<count>();
  f32x16 sums[count][2];
  unrolled<count>([&](auto r) __attribute__((always_inline)) { sums[r][0] = sums[r][1] = f32x16::splat(0); });
  for (int64_t b = 0; b < P::blocks; ++b, x += ByteRows<P>::block_bytes) {
    fetch.begin(b);
    each_tile([&](auto tile) __attribute__((always_inline)) {
      const auto of_row = [&](int r) __attribute__((always_inline)) { return x + r * ByteRows<P>::row_bytes; };
      __m512i block[count];
      unrolled<count>([&](auto r) __attribute__((always_inline)) { block[r] = splat_word(of_row(r) + ByteRows<P>::start_at); });
      weights.template each<tile>(b, [&](int quad, __m512i of_tile) __attribute__((always_inline)) {
        fetch.template part<2 * quads>(tile * quads + quad);
        unrolled<count>([&](auto r) __attribute__((always_inline)) {
          block[r] = _mm512_dpbusd_epi32(block[r], of_tile, splat_word(of_row(r) + quad * 4));
        });
      });
      unrolled<count>([&](auto r) __attribute__((always_inline)) {
        const f32x16 scale = {_mm512_castsi512_ps(splat_word(of_row(r) + ByteRows<P>::scale_at))};
        sums[r][tile] = fma(scale, {_mm512_cvtepi32_ps(block[r])}, sums[r][tile]);
      });
    });
  }
  alignas(64) float results[count][32];
  unrolled<count>([&](auto r) __attribute__((always_inline)) {
    store(results[r], sums[r][0] * load(scales));
    store(results[r] + 16, sums[r][1] * load(scales + 16));
  });
  pass.write(results);
}

// spread_panel: room for the int8 weights of an int4 panel.
template <class P>
void run_int8_dots(const Call& call, std::byte* spread_panel, const float* bias) {
  using Rows = ByteRows<P>;
  int64_t spread_index = -1;  // the panel in that room
  each_pass<P, Rows, 8>(call, bias, [&](const Pass<P, Rows>& pass, auto count, auto fetch) {
    const auto multiply = [&](const auto& weights) { multiply_rows<P, count>(pass, weights, fetch, P::scales(call, pass.index)); };
    if constexpr (!P::Weights::coded) {
      multiply(StoredWeights<P>{pass.panel});
    } else if constexpr (decltype(fetch)::is_lone) {
      multiply(CodedWeights<P>{pass.panel});
    } else {
      if (std::exchange(spread_index, pass.index) != pass.index) spread(CodedWeights<P>{pass.panel}, spread_panel);
      multiply(StoredWeights<P>{spread_panel});
    }
  });
}

}  // namespace slipway::linear
#endif
