// The products of an int8 cache without integer dot products: in float32.
#pragma once
#include "paged_attention/int8_layout.hpp"
#include "paged_attention/streams.hpp"

#if !defined(__AVX512VNNI__)
namespace slipway::paged_attention {

// Of `rows` rows: factors times the 16 columns of lines [16][4], which hold keys (u8 = q + 128) or values (int8).
template <int rows, bool of_keys>
struct QuadSums {
  static constexpr int lines_a_step = 4;  // of `fetch`

  f32x16 sums[rows];

  QuadSums() {
    unrolled<rows>([&](auto r) __attribute__((always_inline)) { sums[r] = f32x16::splat(0); });
  }
  // factors: [rows][4 * lines], `stride` apart.
  [[gnu::always_inline]] void add(const float* factors, int64_t stride, const std::byte* quads, int lines, Fetch& fetch) {
    for (int i = 0; i < 4 * lines; ++i) {
      if (i % (4 * lines_a_step) == 0) fetch.step();
      const f32x16 codes = decode(quads + i / 4 * 64, i % 4);
      unrolled<rows>([&](auto r) __attribute__((always_inline)) { sums[r] = fma(f32x16::splat(factors[r * stride + i]), codes, sums[r]); });
    }
  }

 private:
  // Byte `part` of each word of a line.
  static f32x16 decode(const std::byte* line, int part) {
    f32x16 codes;
    for (int i = 0; i < 2; ++i) {
      __m256i word = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(line) + i);
      if (of_keys) word = _mm256_xor_si256(word, _mm256_set1_epi8(-128));
      codes.v[i] = _mm256_cvtepi32_ps(_mm256_srai_epi32(_mm256_sll_epi32(word, _mm_cvtsi32_si128(24 - 8 * part)), 24));
    }
    return codes;
  }
};
template <int rows>
using ValueSums = QuadSums<rows, false>;

template <class Shape>
struct Int8Cache : Int8Layout<Shape> {
  using Base = Int8Layout<Shape>;
  static constexpr int64_t key_steps = 2 * steps_of<ValueSums<1>>(Base::side_bytes), value_steps = Base::tiles * steps_of<ValueSums<1>>(Base::tile_bytes);

  struct Queries {
    float rows[tile_rows][Base::columns];
  };

  static void prepare(const Head<Shape>& query, Queries& queries, int row) {
    for (int i = 0; i < query.vectors; ++i) store(queries.rows[row] + i * lanes, query.x[i]);
  }

  static void multiply_keys(const Queries& queries, int rows, const std::byte* head, Fetch& fetch, float* scores) {
    each_row_group(rows, fetch, [&](int row, auto count, Fetch& of_group) {
      for (int side = 0; side < 2; ++side) {
        QuadSums<count, true> sums;
        sums.add(queries.rows[row], Base::columns, head + side * Base::side_bytes, Shape::head_dim / 4, of_group);
        const f32x16 scale = load(Base::key_scales(head) + side * lanes);
        unrolled<count>([&](auto r) __attribute__((always_inline)) { store(scores_at(scores, side * lanes, row + r), sums.sums[r] * scale); });
      }
    });
  }

  // Probabilities times the scales of their values, in place.
  static void weigh(float* scores, int rows, const Blocks& blocks, const float* peaks, Folds& sums, Fetch& fetch) {
    for (int b = 0; b < blocks.count; ++b) {
      const float* scales = Base::value_scales(blocks.heads[b]);
      for (int r = 0; r < rows; ++r) {
        float *low = scores_at(scores, b * block_size, r), *high = low + score_stride;
        fetch.step();
        const auto [first, second] = probabilities_of(low, peaks[r], sums[r]);
        store(low, first * load(scales)), store(high, second * load(scales + lanes));
      }
    }
  }

  static void multiply_values(const float* probabilities, int rows, const Blocks& blocks, Fetch& fetch, float* out) {
    stream_values<Shape, Base::tile_bytes, 1, ValueSums>(
        rows, blocks, fetch,
        [&](auto& sums, int row, int block, const std::byte* tile, Fetch& of_group) __attribute__((always_inline)) {
          for (int slot = 0; slot < block_size; slot += lanes) {
            const float* weights = scores_at(probabilities, block * block_size + slot, row);
            sums.add(weights, lanes, tile + slot * lanes, lanes / 4, of_group);
          }
        },
        [&](int row, int column, const auto& sums, auto r) __attribute__((always_inline)) {
          store(out + (row + r) * Base::columns + column, sums.sums[r]);
        });
  }
};

}  // namespace slipway::paged_attention
#endif
