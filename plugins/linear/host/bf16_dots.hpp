// bf16 weights, or codes of small floats as bf16, multiplied by dot products of pairs: AVX-512 with BF16, without AMX.
#pragma once
#include <utility>

#include "linear/host/passes.hpp"
#include "linear/host/quads.hpp"
#include "linear/host/rows.hpp"

#if defined(__AVX512BF16__) && !defined(__AMX_TILE__)
namespace slipway::linear {

// tiles(step): the two tiles of 32 inputs, as those of bf16 weights lie.
template <class P, int count, class Tiles, class Fetch>
void multiply_rows(const Call& call, const Pass<P, PairRows<P>>& pass, Tiles tiles, Fetch fetch) {
  using Weights = typename P::Weights;
  constexpr int64_t block_steps = Weights::block_k / 32, steps = ceil_div(P::inputs, 32);
  const std::byte* x = pass.rows.row(pass.row);
  pass.template begin<count>();
  __m512 sums[count][2];
  alignas(64) float totals[count][32] = {};
  unrolled<count>([&](auto r) __attribute__((always_inline)) { sums[r][0] = sums[r][1] = _mm512_setzero_ps(); });
  for (int64_t step = 0; step < steps; ++step, x += 64) {
    const int part = static_cast<int>(step % block_steps);
    if (part == 0) fetch.begin(step / block_steps);
    const std::byte* of_step = tiles(step);
    each_tile([&](auto tile) __attribute__((always_inline)) {
#pragma GCC unroll 16
      for (int pair = 0; pair < 16; ++pair) {
        fetch.template part<static_cast<int>(32 * block_steps)>(part * 32 + tile * 16 + pair);
        const auto weights = reinterpret_cast<__m512bh>(_mm512_load_si512(of_step + tile * tile_bytes + pair * 64));
        unrolled<count>([&](auto r) __attribute__((always_inline)) {
          const auto factor = reinterpret_cast<__m512bh>(splat_word(x + r * PairRows<P>::row_bytes + pair * 4));
          sums[r][tile] = _mm512_dpbf16_ps(sums[r][tile], weights, factor);
        });
      }
    });
    if (complete<P>((step + 1) * 32))
      unrolled<2 * count>([&](auto i) __attribute__((always_inline)) {
        constexpr int r = i / 2, tile = i % 2;
        float* total = totals[r] + tile * 16;
        store(total, fma(f32x16{sums[r][tile]}, scale<P>(call, pass.index, tile, step * 32), load(total)));
        sums[r][tile] = _mm512_setzero_ps();
      });
  }
  pass.write(totals);
}

// spread_panel: room for the bf16 weights of a coded panel; a lone pass, after which no other comes, takes a k step's of it.
template <class P>
void run_bf16_dots(const Call& call, std::byte* spread_panel, const float* bias) {
  using Rows = PairRows<P>;
  int64_t spread_index = -1;  // the panel in that room
  each_pass<P, Rows, 8>(call, bias, [&](const Pass<P, Rows>& pass, auto count, auto fetch) {
    const auto multiply = [&](auto tiles) { multiply_rows<P, count>(call, pass, tiles, fetch); };
    if constexpr (!P::Weights::coded) {
      multiply([&](int64_t step) { return pass.panel + step * 2048; });
    } else {
      const auto spread = [&](int64_t step, std::byte* to) {
        Spread<P>(Ahead<P>{pass.panel, pass.panel}, step, to).to(Spread<P>::quads);
        return to;
      };
      if constexpr (decltype(fetch)::is_lone) {
        multiply([&](int64_t step) { return spread(step, spread_panel); });
      } else {
        if (std::exchange(spread_index, pass.index) != pass.index)
          for (int64_t step = 0; step < ceil_div(P::inputs, 32); ++step) spread(step, spread_panel + step * 2048);
        multiply([&](int64_t step) { return spread_panel + step * 2048; });
      }
    }
  });
}

}  // namespace slipway::linear
#endif
