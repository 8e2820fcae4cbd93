// Activations as the kernels read them: rows of float32, bf16 or int8 blocks; on AMX tiles of bf16, or of 16-bit fixed point in
// two int8 planes.
#pragma once
#include "linear/host/problem.hpp"
#include "slipway/fixed_point.hpp"

namespace slipway::linear {

inline constexpr int private_rows = 4;  // up to here every thread packs the rows for itself: cheaper than meeting

// `width` inputs from k on as sixteen-lane vectors; zeros beyond `inputs`.
template <int inputs, class In>
f32x16 input(const In* row, int64_t k) {
  if (k + lanes <= inputs) return load(row + k);
  if (k >= inputs) return f32x16::splat(0);
  return load(row + k, static_cast<int>(inputs - k));
}

// [rows][width] float32, width = inputs rounded up to whole blocks, zeros at the end.
template <class P>
struct FloatRows {
  static constexpr int64_t width = round_up(int64_t{P::blocks} * P::Weights::block_k, lanes);
  static constexpr int64_t row_bytes = 4 * width;
  static constexpr int row_multiple = 1;
  float* values;

  FloatRows(std::byte* scratch, int64_t) : values(reinterpret_cast<float*>(scratch)) {}
  const float* row(int64_t r) const { return values + r * width; }
  void pack(int64_t r, const typename P::In* from) const {
    for (int k = 0; k < width; k += lanes) store(values + r * width + k, input<P::inputs>(from, k));
  }
};

// [rows / 16][k_steps][16][32] bf16: AMX A tiles.
template <class P>
struct Bf16Rows {
  static constexpr int planes = 1, row_multiple = 16;
  static constexpr int64_t k_steps = ceil_div(P::inputs, 32), row_bytes = 64 * k_steps, tile_row_bytes = 1024 * k_steps;
  std::byte* tiles;

  Bf16Rows(std::byte* scratch, int64_t) : tiles(scratch) {}
  void pack(int64_t r, const typename P::In* from) const {
    std::byte* at = tiles + r / 16 * tile_row_bytes + r % 16 * 64;
    for (int k = 0; k < k_steps * 32; k += 32, at += 1024) {
      if (std::is_same_v<typename P::In, bf16> && k + 32 <= P::inputs) {
        std::memcpy(at, from + k, 64);
      } else {
        store(reinterpret_cast<bf16*>(at), input<P::inputs>(from, k));
        store(reinterpret_cast<bf16*>(at + 32), input<P::inputs>(from, k + 16));
      }
    }
  }
};

// The largest magnitude of inputs [k, k + count) of a row, NaN if one is not finite: as a scale it reaches all outputs.
template <int inputs, class In>
float absolute_maximum(const In* row, int64_t k, int64_t count) {
  f32x16 largest = f32x16::splat(0);
  for (const int64_t end = k + count; k < end; k += lanes) largest = max_or_nan(largest, abs(input<inputs>(row, k)));
  return reduce_max_or_nan(largest);
}

#if defined(__AVX512BF16__) && !defined(__AMX_TILE__)
// [rows][k] bf16, zeros behind the inputs; a line more than a row holds keeps rows apart in the cache's sets.
template <class P>
struct PairRows {
  static constexpr int row_multiple = 1;
  static constexpr int64_t width = int64_t{P::blocks} * P::Weights::block_k, row_bytes = 2 * width + 64;
  std::byte* values;

  PairRows(std::byte* scratch, int64_t) : values(scratch) {}
  const std::byte* row(int64_t r) const { return values + r * row_bytes; }
  void pack(int64_t r, const typename P::In* from) const {
    for (int64_t k = 0; k < width; k += lanes) store(reinterpret_cast<bf16*>(values + r * row_bytes + k * 2), input<P::inputs>(from, k));
  }
};
#endif

#if defined(__AVX512VNNI__) && !defined(__AMX_TILE__)
// [rows][blocks]{int8[block_k], scale float32, start int32}: x = scale * code; start: minus the sum of the codes times the weights'
// common zero.
template <class P>
struct ByteRows {
  static constexpr int row_multiple = 1, block_k = P::Weights::block_k, scale_at = block_k, start_at = block_k + 4;
  static constexpr int64_t block_bytes = block_k + 8, row_bytes = P::blocks * block_bytes;
  std::byte* values;

  ByteRows(std::byte* scratch, int64_t) : values(scratch) {}
  const std::byte* row(int64_t r) const { return values + r * row_bytes; }
  void pack(int64_t r, const typename P::In* from) const {
    std::byte* at = values + r * row_bytes;
    for (int64_t b = 0; b < P::blocks; ++b, at += block_bytes) {
      const float largest = absolute_maximum<P::inputs>(from, b * block_k, block_k), scale = largest / 127;
      const __m512 inverse = _mm512_set1_ps(largest > 0 ? 127 / largest : 0);
      __m512i sum = _mm512_setzero_si512();
      for (int i = 0; i < block_k; i += lanes) {
        const __m512i steps = _mm512_cvtps_epi32(_mm512_mul_ps(input<P::inputs>(from, b * block_k + i).v, inverse));
        const __m512i codes = _mm512_max_epi32(steps, _mm512_set1_epi32(-127));  // what is not finite
        _mm_storeu_si128(reinterpret_cast<__m128i*>(at + i), _mm512_cvtepi32_epi8(codes));
        sum = _mm512_add_epi32(sum, codes);
      }
      const int32_t start = -P::Weights::common_zero * _mm512_reduce_add_epi32(sum);
      std::memcpy(at + scale_at, &scale, sizeof scale);
      std::memcpy(at + start_at, &start, sizeof start);
    }
  }
};
#endif

#if defined(__AMX_TILE__)
// x = scale * (256 * high + low): [rows / 8][k_steps][8 x {high[64], low[64]}] int8, AMX A tiles of 8 rows. Beside them
// each row's scale and the sums of its high and low plane, times the weights' common zero.
template <class P>
struct FixedRows {
  using Weights = typename P::Weights;
  static constexpr int planes = 2, row_multiple = 16;
  static constexpr int64_t k_steps = ceil_div(int64_t{P::blocks} * Weights::block_k, 64);
  static constexpr int64_t row_bytes = 128 * k_steps + 4 + 2 * 4, tile_row_bytes = 1024 * k_steps;
  std::byte* tiles;
  float* scales;   // [padded]
  int32_t* sums;   // [2][padded]
  int64_t padded;

  FixedRows(std::byte* scratch, int64_t rows)
      : tiles(scratch), scales(reinterpret_cast<float*>(scratch + rows * 128 * k_steps)),
        sums(reinterpret_cast<int32_t*>(scales + rows)), padded(rows) {}

  void pack(int64_t r, const typename P::In* from) const {
    const float largest = absolute_maximum<P::inputs>(from, 0, P::inputs);
    scales[r] = largest / most_fixed;
    const f32x16 steps = f32x16::splat(largest > 0 ? most_fixed / largest : 0);
    std::byte* at = tiles + r / 8 * tile_row_bytes + r % 8 * 128;
    __m512i high_sum = _mm512_setzero_si512(), low_sum = high_sum;
    for (int k = 0; k < k_steps * 64; k += lanes) {
      const auto [high, low] = to_planes(input<P::inputs>(from, k) * steps);
      std::byte* quads = at + k / 64 * 1024 + k % 64;
      _mm_store_si128(reinterpret_cast<__m128i*>(quads), _mm512_cvtepi32_epi8(high));
      _mm_store_si128(reinterpret_cast<__m128i*>(quads + 64), _mm512_cvtepi32_epi8(low));
      high_sum = _mm512_add_epi32(high_sum, high);
      low_sum = _mm512_add_epi32(low_sum, low);
    }
    sums[r] = Weights::common_zero * _mm512_reduce_add_epi32(high_sum);
    sums[padded + r] = Weights::common_zero * _mm512_reduce_add_epi32(low_sum);
  }
};
#endif

// The step's rows, packed: by the team into call.shared, or a few rows by every thread into call.local.
template <class P, class Rows>
Rows pack_rows(const Call& call) {
  const bool alone = call.rows <= private_rows || call.size == 1;
  const bool is_private = call.rows <= private_rows;
  const Rows rows(is_private ? call.local : call.shared, round_up(call.rows, Rows::row_multiple));
  const Range mine = is_private ? Range{0, call.rows} : call.share(call.rows);
  for (int64_t r = mine.begin; r < mine.end; ++r) rows.pack(r, call.inputs[0].row<typename P::In>(r));
  if (!alone) call.sync();
  asm volatile("" ::: "memory");  // gcc 12 does not know that a tile load reads memory
  return rows;
}

}  // namespace slipway::linear
