// bf16 weights multiplied by dot products of pairs: AVX-512 with BF16, without AMX.
#pragma once
#include "linear/host/passes.hpp"
#include "linear/host/rows.hpp"

#if defined(__AVX512BF16__) && !defined(__AMX_TILE__)
namespace slipway::linear {

template <class P>
void run_bf16_dots(const Call& call, const float* bias) {
  constexpr int most_rows = 8;
  Stream<panel_chunk<P>> stream(call, P::panels);
  LoneAhead<P>::begin(P::panel(call, stream.first()));
  const PairRows<P> rows = pack_rows<P, PairRows<P>>(call);
  const Output<P> output(call, bias);
  each_pass<P, most_rows>(call, stream, [&](int64_t row, auto count, int64_t index, const std::byte* panel, auto fetch) {
    const std::byte* x = rows.row(row);
    output.expect(row, count, index);
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
            const auto factor = reinterpret_cast<__m512bh>(splat_word(x + r * PairRows<P>::row_bytes + pair * 4));
            sums[r][tile] = _mm512_dpbf16_ps(sums[r][tile], weights, factor);
          });
        }
      });
    }
    unrolled<count>([&](auto r) __attribute__((always_inline)) { output(row + r, index, {sums[r][0]}, {sums[r][1]}); });
  });
}

}  // namespace slipway::linear
#endif
