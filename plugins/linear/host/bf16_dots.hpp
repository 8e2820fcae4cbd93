// bf16 weights multiplied by dot products of pairs: AVX-512 with BF16, without AMX.
#pragma once
#include "linear/host/passes.hpp"
#include "linear/host/rows.hpp"

#if defined(__AVX512BF16__) && !defined(__AMX_TILE__)
namespace slipway::linear {

template <class P>
void run_bf16_dots(const Call& call, const float* bias) {
  using Rows = PairRows<P>;
  each_pass<P, Rows, 8>(call, bias, [](const Pass<P, Rows>& pass, auto count, auto fetch) {
    const std::byte *x = pass.rows.row(pass.row), *panel = pass.panel;
    pass.template begin<count>();
    __m512 sums[count][2];
    unrolled<count>([&](auto r) __attribute__((always_inline)) { sums[r][0] = sums[r][1] = _mm512_setzero_ps(); });
    for (int64_t b = 0; b < P::blocks; ++b, panel += 2048, x += 64) {
      fetch.begin(b);
      each_tile([&](auto tile) __attribute__((always_inline)) {
#pragma GCC unroll 16
        for (int pair = 0; pair < 16; ++pair) {
          fetch.template part<32>(tile * 16 + pair);
          const auto weights = reinterpret_cast<__m512bh>(_mm512_load_si512(panel + tile * 1024 + pair * 64));
          unrolled<count>([&](auto r) __attribute__((always_inline)) {
            const auto factor = reinterpret_cast<__m512bh>(splat_word(x + r * Rows::row_bytes + pair * 4));
            sums[r][tile] = _mm512_dpbf16_ps(sums[r][tile], weights, factor);
          });
        }
      });
    }
    alignas(64) float results[count][32];
    unrolled<count>([&](auto r) __attribute__((always_inline)) { store(results[r], {sums[r][0]}), store(results[r] + 16, {sums[r][1]}); });
    pass.write(results);
  });
}

}  // namespace slipway::linear
#endif
