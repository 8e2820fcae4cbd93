// Integer weights multiplied as they stream by, by VNNI dot products: all rows on AVX-512, a single row of int4 with AMX.
#pragma once
#include "linear/host/integers.hpp"

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
  void add(const PlaneSums& other) {
    for (int r = 0; r < count; ++r)
      for (int plane = 0; plane < 2; ++plane)
        for (int tile = 0; tile < 2; ++tile)
          sums[r][plane][tile] = _mm512_add_epi32(sums[r][plane][tile], other.sums[r][plane][tile]);
  }
};

// `count` rows from `row` on, all in one tile row, against one panel.
template <class P, int count>
void multiply_rows(const FixedRows<P>& rows, int64_t row, const std::byte* panel, const Ahead<P>& ahead, const float* scales,
                   int64_t index, const Output<P>& output) {
  using Weights = typename P::Weights;
  const std::byte* x = rows.planes_of(row);
  if constexpr (Weights::grouped) {
    f32x16 totals[count][2];
    for (auto& total : totals) total[0] = total[1] = f32x16::splat(0);
    for (int b = 0; b < P::blocks; ++b) {
      const std::byte* block = panel + int64_t{b} * Weights::block_bytes;
      const std::byte* next = ahead.block(b);
      prefetch<Weights::header_bytes>(next);
      const std::byte* codes = block + Weights::header_bytes;
      const __m512i nibble = _mm512_set1_epi8(0x0f);
      PlaneSums<count> even, odd;  // two chains: a dot product takes five cycles
      const auto add = [&](PlaneSums<count>& sums, int quad) {
        prefetch<64>(next + Weights::header_bytes + quad * 64);
        const __m512i both = _mm512_load_si512(codes + quad * 64);
        const int k = b * Weights::block_k + quad * 4;
        sums.add(_mm512_and_si512(both, nibble), _mm512_and_si512(_mm512_srli_epi16(both, 4), nibble), x + k / 64 * 1024 + k % 64);
      };
      if constexpr (count <= 2) {
        for (int quad = 0; quad < Weights::block_k / 4; quad += 2) add(even, quad), add(odd, quad + 1);
        even.add(odd);
      } else {
        for (int quad = 0; quad < Weights::block_k / 4; ++quad) add(even, quad);
      }
      const GroupHeader<Weights> header(block);
      for (int r = 0; r < count; ++r)
        for (int tile = 0; tile < 2; ++tile)
          totals[r][tile] = header.fold(tile, even.sums[r][0][tile], even.sums[r][1][tile], rows.sums[b * rows.padded + row + r],
                                        totals[r][tile]);
    }
    for (int r = 0; r < count; ++r) {
      const f32x16 scale = f32x16::splat(rows.scales[row + r]);
      output(row + r, index, totals[r][0] * scale, totals[r][1] * scale);
    }
  } else {
    PlaneSums<count> sums;
    for (int b = 0; b < P::blocks; ++b) {
      const std::byte* block = panel + int64_t{b} * Weights::block_bytes;
      const std::byte* next = ahead.block(b);
      for (int quad = 0; quad < 16; ++quad) {
        prefetch<128>(next + quad * 128);
        sums.add(_mm512_load_si512(block + quad * 64), _mm512_load_si512(block + 1024 + quad * 64), x + b * 1024 + quad * 4);
      }
    }
    for (int r = 0; r < count; ++r) {
      const auto finished = [&](int tile) {
        return finish_int8(rows, row + r, sums.sums[r][0][tile], sums.sums[r][1][tile], load(scales + tile * 16));
      };
      output(row + r, index, finished(0), finished(1));
    }
  }
}

template <class P>
void run_vnni(const Call& call, const float* bias) {
  Stream<panel_chunk<P>> stream(call, P::panels);
  Ahead<P>::begin(P::panel(call, stream.first()));
  const FixedRows<P> rows = pack_rows<P, FixedRows<P>>(call);
  const Output<P> output(call, bias);
  stream.each([&](int64_t index, int64_t following) {
    const std::byte* panel = P::panel(call, index);
    const Ahead<P> ahead{panel, P::panel(call, following)};
    const float* scales = reinterpret_cast<const float*>(P::panel(call, P::panels)) + index * 32;  // int8 only
    for (int64_t row = 0; row < call.rows;) {
      const int64_t left = call.rows - row;
      if (left >= 4) {
        multiply_rows<P, 4>(rows, row, panel, ahead, scales, index, output), row += 4;
      } else if (left >= 2) {
        multiply_rows<P, 2>(rows, row, panel, ahead, scales, index, output), row += 2;
      } else {
        multiply_rows<P, 1>(rows, row, panel, ahead, scales, index, output), row += 1;
      }
    }
  });
}

}  // namespace slipway::linear
#endif
