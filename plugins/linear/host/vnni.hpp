// Integer weights multiplied as they stream by, by VNNI dot products: AVX-512 without AMX.
#pragma once
#include "linear/host/integers.hpp"
#include "linear/host/ladder.hpp"

#if defined(__AVX512VNNI__)
namespace slipway::linear {

inline __m512i dot(__m512i sum, __m512i codes, const std::byte* quad) {
  int32_t x;
  std::memcpy(&x, quad, sizeof x);
  return _mm512_dpbusd_epi32(sum, codes, _mm512_set1_epi32(x));
}

// Plane sums of `count` rows and 32 columns: [row][plane][column tile].
template <int count>
struct PlaneSums {
  __m512i sums[count][2][2];

  PlaneSums() {
    for (auto& row : sums)
      for (auto& plane : row) plane[0] = plane[1] = _mm512_setzero_si512();
  }
  // Four inputs: codes of both column tiles; x: planes of the first row, 128 bytes a row.
  void add(__m512i first, __m512i second, const std::byte* x) {
    for (int r = 0; r < count; ++r)
      for (int plane = 0; plane < 2; ++plane) {
        sums[r][plane][0] = dot(sums[r][plane][0], first, x + r * 128 + plane * 64);
        sums[r][plane][1] = dot(sums[r][plane][1], second, x + r * 128 + plane * 64);
      }
  }
};

// Calls use(quad, weights of both column tiles) for every four inputs of a block; meanwhile `next` is fetched.
template <class Use>
void each_quad(Int8, const std::byte* block, const std::byte* next, Use use) {
  for (int quad = 0; quad < 16; ++quad) {
    prefetch<128>(next + quad * 128);
    use(quad, _mm512_load_si512(block + quad * 64), _mm512_load_si512(block + 1024 + quad * 64));
  }
}

template <int group, bool zero_point, class Use>
void each_quad(Int4<group, zero_point>, const std::byte* block, const std::byte* next, Use use) {
  constexpr int header_bytes = Int4<group, zero_point>::header_bytes;
  prefetch<header_bytes>(next);
  const Ladders<Int4<group, zero_point>> ladders(block);
  for (int quad = 0; quad < group / 4; ++quad) {
    prefetch_line(next + header_bytes + quad * 64);
    const __m512i nibbles = _mm512_load_si512(block + header_bytes + quad * 64);
    use(quad, ladders.template weights<0>(nibbles), ladders.template weights<1>(nibbles));
  }
}

// `count` rows from `row` on, all in one tile row, against one panel.
template <class P, int count>
void multiply_rows(const Call& call, const FixedRows<P>& rows, int64_t row, int64_t panel, const Ahead<P>& ahead, const Output<P>& output) {
  using Weights = typename P::Weights;
  const std::byte* x = rows.planes_of(row);
  PlaneSums<count> sums;
  for (int64_t b = 0; b < P::blocks; ++b)
    each_quad(Weights{}, ahead.panel + b * Weights::block_bytes, ahead.block(b), [&](int quad, __m512i first, __m512i second) {
      const int64_t k = b * Weights::block_k + quad * 4;
      sums.add(first, second, x + k / 64 * 1024 + k % 64);
    });
  const float* scales = P::scales(call, panel);
  for (int r = 0; r < count; ++r) {
    const auto half = [&](int tile) {
      return finished(rows, row + r, sums.sums[r][0][tile], sums.sums[r][1][tile], load(scales + tile * 16));
    };
    output(row + r, panel, half(0), half(1));
  }
}

template <class P>
void run_vnni(const Call& call, const float* bias) {
  Stream<panel_chunk<P>> stream(call, P::panels);
  Ahead<P>::begin(P::panel(call, stream.first()));
  const FixedRows<P> rows = pack_rows<P, FixedRows<P>>(call);
  const Output<P> output(call, bias);
  stream.each([&](int64_t panel, int64_t following) {
    const Ahead<P> ahead{P::panel(call, panel), P::panel(call, following)};
    for (int64_t row = 0; row < call.rows;) {
      const int64_t left = call.rows - row;
      if (left >= 4) {
        multiply_rows<P, 4>(call, rows, row, panel, ahead, output), row += 4;
      } else if (left >= 2) {
        multiply_rows<P, 2>(call, rows, row, panel, ahead, output), row += 2;
      } else {
        multiply_rows<P, 1>(call, rows, row, panel, ahead, output), row += 1;
      }
    }
  });
}

}  // namespace slipway::linear
#endif
