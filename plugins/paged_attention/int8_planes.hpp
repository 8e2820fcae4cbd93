// The products of an int8 cache with VNNI or AMX: queries and probabilities are 16-bit fixed point, so that sums are exact integers.
#pragma once
#include "paged_attention/int8_layout.hpp"
#include "paged_attention/streams.hpp"
#include "paged_attention/tiles.hpp"
#include "slipway/codes.hpp"
#include "slipway/fixed_point.hpp"

#if defined(__AVX512VNNI__)
namespace slipway::paged_attention {

// Of `rows` rows: both planes of their factors times the 16 columns of lines [16][4]. Keys are unsigned and their factors signed,
// values the other way round.
template <int rows, bool of_keys>
struct PlaneSums {
  static constexpr int lines_a_step = 8;  // of `fetch`

  __m512i high[rows], low[rows];

  PlaneSums() {
    unrolled<rows>([&](auto r) __attribute__((always_inline)) { high[r] = low[r] = _mm512_setzero_si512(); });
  }
  explicit PlaneSums(const int32_t (*starts)[2]) {
    unrolled<rows>([&](auto r) __attribute__((always_inline)) {
      high[r] = _mm512_set1_epi32(starts[r][0]), low[r] = _mm512_set1_epi32(starts[r][1]);
    });
  }

  // planes: [rows][2][4 * lines], `plane_bytes` apart.
  [[gnu::always_inline]] void add(const std::byte* planes, int64_t plane_bytes, const std::byte* quads, int lines, Fetch& fetch) {
    for (int i = 0; i < lines; ++i) {
      if (i % lines_a_step == 0) fetch.step();
      const __m512i codes = _mm512_loadu_si512(quads + i * 64);
      const auto dot = [&](__m512i sum, const std::byte* at) __attribute__((always_inline)) {
        const __m512i factors = splat_word(at + 4 * i);
        return of_keys ? _mm512_dpbusd_epi32(sum, codes, factors) : _mm512_dpbusd_epi32(sum, factors, codes);
      };
      unrolled<rows>([&](auto r) __attribute__((always_inline)) {
        high[r] = dot(high[r], planes + 2 * r * plane_bytes);
        low[r] = dot(low[r], planes + (2 * r + 1) * plane_bytes);
      });
    }
  }
  f32x16 sum(int r) const { return from_planes(high[r], low[r]); }
};
template <int rows>
using ValueSums = PlaneSums<rows, false>;

template <class Shape>
class Int8Cache : public Int8Layout<Shape> {
  using Base = Int8Layout<Shape>;
  static constexpr int depth = (Shape::head_dim + 63) / 64 * 64;  // of a prepared query, zero behind head_dim
  static constexpr int plane_bytes = block_size;                  // of the probabilities of a block

 public:
#if defined(__AMX_INT8__)
  static constexpr int64_t key_steps = 1, value_steps = (Base::tiles + 3) / 4;
#else
  static constexpr int64_t key_steps = 2 * steps_of<ValueSums<1>>(Base::side_bytes), value_steps = Base::tiles * steps_of<ValueSums<1>>(Base::tile_bytes);
#endif

  struct alignas(64) Queries {
    std::byte planes[tile_rows][2][depth];
    int32_t starts[tile_rows][2];  // of their sums: minus 128 times the sum of each plane
    float scales[tile_rows];
  };

  static void prepare(const Head<Shape>& query, Queries& queries, int row) {
    const float magnitude = query.magnitude();
    const f32x16 steps = f32x16::splat(magnitude > least_magnitude ? most_fixed / magnitude : 0);
    __m512i high_sum = _mm512_setzero_si512(), low_sum = high_sum;
    for (int i = 0; i < depth / lanes; ++i) {
      const auto [high, low] = to_planes(i < query.vectors ? query.x[i] * steps : f32x16::splat(0));
      store_bytes(queries.planes[row][0] + i * lanes, high);
      store_bytes(queries.planes[row][1] + i * lanes, low);
      high_sum = _mm512_add_epi32(high_sum, high), low_sum = _mm512_add_epi32(low_sum, low);
    }
    queries.starts[row][0] = -codes::int8_zero * _mm512_reduce_add_epi32(high_sum);
    queries.starts[row][1] = -codes::int8_zero * _mm512_reduce_add_epi32(low_sum);
    queries.scales[row] = magnitude / most_fixed;
  }

  // Probabilities times the scales of their values, of each row in parts of its largest such product: planes of unsigned bytes, of 32
  // positions in one line, where the scores of the first 16 were.
  void weigh(float* scores, int rows, const Blocks& blocks, const float* peaks, Folds& sums, Fetch& fetch) {
    fill(largest_, rows, 0);
    for (int b = 0; b < blocks.count; ++b) {
      const f32x16 first_scale = load(Base::value_scales(blocks.heads[b])), second_scale = load(Base::value_scales(blocks.heads[b]) + lanes);
      for (int r = 0; r < rows; ++r) {
        float *low = scores_at(scores, b * block_size, r), *high = low + score_stride;
        fetch.step();
        const auto [first, second] = probabilities_of(low, peaks[r], sums[r]);
        const f32x16 first_weight = first * first_scale, second_weight = second * second_scale;
        store(largest_[r], max_or_nan(load(largest_[r]), max_or_nan(first_weight, second_weight)));
        store(low, first_weight), store(high, second_weight);
      }
    }
    float steps[tile_rows];
    for (int r = 0; r < rows; ++r) {
      const float largest = reduce_max_or_nan(load(largest_[r]));
      steps[r] = largest > least_magnitude ? most_weight / largest : 0;
      scales_[r] = largest / most_weight;
    }
    for (int b = 0; b < blocks.count; ++b) {
      for (int r = 0; r < rows; ++r) {
        float* at = scores_at(scores, b * block_size, r);
        std::byte* planes = reinterpret_cast<std::byte*>(at);
        const __m512i first = to_weight(load(at), steps[r]), second = to_weight(load(at + score_stride), steps[r]);
        store_bytes(planes, _mm512_srli_epi32(first, 8));
        store_bytes(planes + lanes, _mm512_srli_epi32(second, 8));
        store_bytes(planes + plane_bytes, first);
        store_bytes(planes + plane_bytes + lanes, second);
      }
    }
  }

#if defined(__AMX_INT8__)

  // Both planes of a row are rows of the A tile.
  void multiply_keys(const Queries& queries, int rows, const std::byte* head, Fetch& fetch, float* scores) {
    static_assert(Base::side_bytes + depth * lanes <= Base::head_bytes);  // what the last step may read behind the keys: queries are zero there
    tiles_.use(2 * rows);
    fetch.step();
    for (int row = 0; row < rows; row += 16) {
      const int count = std::min(16, rows - row);
      if (count <= 8) multiply_keys<1>(queries.planes[row][0], head);
      else multiply_keys<2>(queries.planes[row][0], head);
      for (int side = 0; side < 2; ++side) {
        const f32x16 key_scale = load(Base::key_scales(head) + side * lanes);
        for (int r = 0; r < count; ++r) {
          const auto [high, low] = sums_of(r, side);
          const int32_t* starts = queries.starts[row + r];
          const f32x16 sum = from_planes(_mm512_add_epi32(high, _mm512_set1_epi32(starts[0])), _mm512_add_epi32(low, _mm512_set1_epi32(starts[1])));
          store(scores_at(scores, side * lanes, row + r), sum * (f32x16::splat(queries.scales[row + r]) * key_scale));
        }
      }
    }
  }

  void multiply_values(const float* probabilities, int rows, const Blocks& blocks, Fetch& fetch, float* out) {
    tiles_.use(2 * rows, plane_bytes);
    for (int row = 0; row < rows; row += 16) {
      const int count = std::min(16, rows - row);
      const float* at = scores_at(probabilities, 0, row);
      if (count <= 8) multiply_values<1>(at, row, count, blocks, fetch, out + row * Base::columns);
      else multiply_values<2>(at, row, count, blocks, fetch, out + row * Base::columns);
    }
  }

 private:
  template <int row_tiles>
  void multiply_keys(const std::byte* planes, const std::byte* head) {
    begin_sums();
    for (int k = 0; k < depth; k += 64) {
      _tile_loadd(6, head + k * lanes, 64);
      _tile_loadd(7, head + Base::side_bytes + k * lanes, 64);
      _tile_loadd(4, planes + k, depth);
      _tile_dpbsud(0, 4, 6);
      _tile_dpbsud(1, 4, 7);
      if constexpr (row_tiles == 2) {
        _tile_loadd(5, planes + 16 * depth + k, depth);
        _tile_dpbsud(2, 5, 6);
        _tile_dpbsud(3, 5, 7);
      }
    }
    store_sums();
  }

  template <int row_tiles>
  void multiply_values(const float* probabilities, int row, int count, const Blocks& blocks, Fetch& fetch, float* out) {
    constexpr int step = 4 / row_tiles;  // tiles of columns at a time
    for (int first = 0; first < Base::tiles; first += step) {
      const auto values = [&](int block, int i) {  // the last may repeat those before
        return blocks.heads[block] + Base::values_at + std::min(first + i, Base::tiles - 1) * Base::tile_bytes;
      };
      begin_sums();
      for (int b = 0; b < blocks.count; ++b) {
        if (row == 0) fetch.step();
        const float* planes = scores_at(probabilities, b * block_size, 0);
        _tile_loadd(4, planes, plane_bytes);
        _tile_loadd(6, values(b, 0), 64);
        _tile_loadd(7, values(b, 1), 64);
        _tile_dpbusd(0, 4, 6);
        _tile_dpbusd(1, 4, 7);
        if constexpr (row_tiles == 2) {
          _tile_loadd(5, planes + 8 * lanes, plane_bytes);
          _tile_dpbusd(2, 5, 6);
          _tile_dpbusd(3, 5, 7);
        } else {
          _tile_loadd(6, values(b, 2), 64);
          _tile_loadd(7, values(b, 3), 64);
          _tile_dpbusd(2, 4, 6);
          _tile_dpbusd(3, 4, 7);
        }
      }
      store_sums();
      for (int r = 0; r < count; ++r) {
        for (int i = 0; i < step && first + i < Base::tiles; ++i) {
          const auto [high, low] = sums_of(r, i);
          store(out + r * Base::columns + (first + i) * lanes, from_planes(high, low) * f32x16::splat(scales_[row + r]));
        }
      }
    }
  }

  void store_sums() {
    _tile_stored(0, sums_[0], 64);
    _tile_stored(1, sums_[1], 64);
    _tile_stored(2, sums_[2], 64);
    _tile_stored(3, sums_[3], 64);
    asm volatile("" ::: "memory");
  }

  // Of row r and a tile of columns: sums 0 to 3 are of the first 8 rows, or two of them of the second 8.
  Planes sums_of(int r, int column_tile) const {
    const int32_t* at = sums_[r / 8 * 2 + column_tile] + r % 8 * 2 * lanes;
    return {_mm512_load_si512(at), _mm512_load_si512(at + lanes)};
  }

  Tiles tiles_;
  alignas(64) int32_t sums_[4][16 * lanes];

#else

  static void multiply_keys(const Queries& queries, int rows, const std::byte* head, Fetch& fetch, float* scores) {
    each_row_group(rows, fetch, [&](int row, auto count, Fetch& of_group) {
      for (int side = 0; side < 2; ++side) {
        PlaneSums<count, true> sums(queries.starts + row);
        sums.add(queries.planes[row][0], depth, head + side * Base::side_bytes, Shape::head_dim / 4, of_group);
        const f32x16 key_scale = load(Base::key_scales(head) + side * lanes);
        unrolled<count>([&](auto r) __attribute__((always_inline)) {
          store(scores_at(scores, side * lanes, row + r), sums.sum(r) * (f32x16::splat(queries.scales[row + r]) * key_scale));
        });
      }
    });
  }

  void multiply_values(const float* probabilities, int rows, const Blocks& blocks, Fetch& fetch, float* out) const {
    stream_values<Shape, Base::tile_bytes, 2, ValueSums>(
        rows, blocks, fetch,
        [&](auto& sums, int row, int block, const std::byte* tile, Fetch& of_group) __attribute__((always_inline)) {
          const float* planes = scores_at(probabilities, block * block_size, row);
          sums.add(reinterpret_cast<const std::byte*>(planes), plane_bytes, tile, block_size / 4, of_group);
        },
        [&](int row, int column, const auto& sums, auto r) __attribute__((always_inline)) {
          store(out + (row + r) * Base::columns + column, sums.sum(r) * f32x16::splat(scales_[row + r]));
        });
  }

 private:
#endif
  static constexpr float most_weight = 65535;

  static __m512i to_weight(f32x16 weight, float steps) { return _mm512_cvtps_epi32((weight * f32x16::splat(steps)).v); }
  static void store_bytes(std::byte* at, __m512i a) { _mm_storeu_si128(reinterpret_cast<__m128i*>(at), _mm512_cvtepi32_epi8(a)); }

  float scales_[tile_rows];  // of the probabilities
  Folds largest_;
};

}  // namespace slipway::paged_attention
#endif
