// Keys and values in bfloat16. Of each KV head of a block: keys [2][head_dim/2][16 tokens][2], then values
// [columns/16][16 token pairs][16 columns][2]: AMX B tiles and operands of bf16 dot products as they lie.
#pragma once
#include "paged_attention/head.hpp"
#include "paged_attention/streams.hpp"
#include "paged_attention/tiles.hpp"

namespace slipway::paged_attention {

// Queries and probabilities as they are multiplied.
#if defined(__AVX512BF16__)
using Factor = bf16;
#else
using Factor = float;
#endif

// Of `rows` rows: factors times the 16 columns of lines [16][2].
template <int rows>
struct PairSums {
  static constexpr int lines_a_step = 2;  // of `fetch`

#if defined(__AVX512BF16__)
  __m512 sums[rows];

  PairSums() {
    unrolled<rows>([&](auto r) __attribute__((always_inline)) { sums[r] = _mm512_setzero_ps(); });
  }
  // factors: [rows][2 * lines], `stride` apart.
  [[gnu::always_inline]] void add(const bf16* factors, int64_t stride, const std::byte* words, int lines, Fetch& fetch) {
    for (int i = 0; i < lines; ++i) {
      if (i % lines_a_step == 0) fetch.step();
      const auto columns = reinterpret_cast<__m512bh>(_mm512_loadu_si512(words + i * 64));
      unrolled<rows>([&](auto r) __attribute__((always_inline)) {
        const auto factor = reinterpret_cast<__m512bh>(splat_word(factors + r * stride + 2 * i));
        sums[r] = _mm512_dpbf16_ps(sums[r], columns, factor);
      });
    }
  }
  f32x16 sum(int r) const { return {sums[r]}; }
#else
  f32x16 sums[rows];

  PairSums() {
    unrolled<rows>([&](auto r) __attribute__((always_inline)) { sums[r] = f32x16::splat(0); });
  }
  [[gnu::always_inline]] void add(const float* factors, int64_t stride, const std::byte* words, int lines, Fetch& fetch) {
    for (int i = 0; i < lines; ++i) {
      if (i % lines_a_step == 0) fetch.step();
      const auto [even, odd] = load_pairs(words + i * 64);
      unrolled<rows>([&](auto r) __attribute__((always_inline)) {
        const f32x16 partial = fma(f32x16::splat(factors[r * stride + 2 * i]), even, sums[r]);
        sums[r] = fma(f32x16::splat(factors[r * stride + 2 * i + 1]), odd, partial);
      });
    }
  }
  f32x16 sum(int r) const { return sums[r]; }
#endif
};

template <class Shape>
class Bf16Cache {
  static constexpr int columns = Layout<Shape>::columns, tiles = columns / lanes;
  static constexpr int depth = (Shape::head_dim + 31) / 32 * 32;  // of a prepared query, zero behind head_dim
  static constexpr int64_t tile_bytes = block_size * lanes * 2;

 public:
  static constexpr int64_t keys_bytes = block_size * Shape::head_dim * 2, side_bytes = keys_bytes / 2;
  static constexpr int64_t values_at = keys_bytes, head_bytes = keys_bytes + tiles * tile_bytes;
#if defined(__AMX_BF16__)
  static constexpr int64_t key_steps = 1, value_steps = (tiles + 3) / 4;
#else
  static constexpr int64_t key_steps = 2 * steps_of<PairSums<1>>(side_bytes), value_steps = tiles * steps_of<PairSums<1>>(tile_bytes);
#endif

  struct Queries {
    Factor rows[tile_rows][depth];
  };

  static void prepare(const Head<Shape>& query, Queries& queries, int row) {
    for (int i = 0; i < depth / lanes; ++i) store(queries.rows[row] + i * lanes, i < query.vectors ? query.x[i] : f32x16::splat(0));
  }

  // A token's column of the words [head_dim/2][16]: columns 2i and 2i + 1 of the head are a word.
  static void store_key(const Head<Shape>& key, std::byte* head, int slot) {
    alignas(64) uint32_t words[columns / 2];
    for (int i = 0; i < key.vectors; ++i) store(reinterpret_cast<bf16*>(words) + i * lanes, key.x[i]);
    uint32_t* out = reinterpret_cast<uint32_t*>(head + slot / 16 * side_bytes) + slot % 16;
    for (int i = 0; i < Shape::head_dim / 2; ++i) out[i * 16] = words[i];
  }

  // A token's half of the words of a pair of slots.
  static void store_value(const Head<Shape>& value, std::byte* head, int slot) {
    std::byte* out = head + values_at + slot / 2 * 64;
    for (int i = 0; i < tiles; ++i) store_alternate(reinterpret_cast<bf16*>(out + i * tile_bytes), value.x[i], slot % 2);
  }

  // Probabilities as Factor: 32 bf16 of a row in one line, where the first 16 of their scores were; float32 in place.
  static void weigh(float* scores, int rows, const Blocks& blocks, const float* peaks, Folds& sums, Fetch& fetch) {
    for (int b = 0; b < blocks.count; ++b) {
      for (int r = 0; r < rows; ++r) {
        float* low = scores_at(scores, b * block_size, r);
        fetch.step();
        const auto [first, second] = probabilities_of(low, peaks[r], sums[r]);
#if defined(__AVX512BF16__)
        _mm512_storeu_si512(low, reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(second.v, first.v)));
#else
        store(low, first), store(low + score_stride, second);
#endif
      }
    }
  }

#if defined(__AMX_BF16__)

  void multiply_keys(const Queries& queries, int rows, const std::byte* head, Fetch& fetch, float* scores) {
    tiles_.use(rows);
    fetch.step();
    if (rows <= 16) multiply_keys<1>(queries, head, scores);
    else multiply_keys<2>(queries, head, scores);
  }

  void multiply_values(const float* probabilities, int rows, const Blocks& blocks, Fetch& fetch, float* out) {
    if (rows <= 16) multiply_values<1>(probabilities, blocks, fetch, out);
    else multiply_values<2>(probabilities, blocks, fetch, out);
  }

 private:
  template <int row_tiles>
  static void multiply_keys(const Queries& queries, const std::byte* keys, float* scores) {
    constexpr int stride = depth * 2;
    begin_sums();
    for (int k = 0; k < depth; k += 32) {  // the last step may read behind the keys: the queries are zero there
      _tile_loadd(6, keys + k * 32, 64);
      _tile_loadd(7, keys + side_bytes + k * 32, 64);
      _tile_loadd(4, queries.rows[0] + k, stride);
      _tile_dpbf16ps(0, 4, 6);
      _tile_dpbf16ps(1, 4, 7);
      if constexpr (row_tiles == 2) {
        _tile_loadd(5, queries.rows[16] + k, stride);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
      }
    }
    _tile_stored(0, scores_at(scores, 0, 0), 64);
    _tile_stored(1, scores_at(scores, 16, 0), 64);
    if constexpr (row_tiles == 2) {
      _tile_stored(2, scores_at(scores, 0, 16), 64);
      _tile_stored(3, scores_at(scores, 16, 16), 64);
    }
  }

  // Four tiles of sums at a time.
  template <int row_tiles>
  static void multiply_values(const float* probabilities, const Blocks& blocks, Fetch& fetch, float* out) {
    constexpr int step = 4 / row_tiles;
    for (int first = 0; first < tiles; first += step) {
      const auto tile = [&](int i) { return std::min(first + i, tiles - 1); };  // the last may repeat those before
      const auto values = [&](int block, int t) { return blocks.heads[block] + values_at + t * tile_bytes; };
      begin_sums();
      for (int b = 0; b < blocks.count; ++b) {
        fetch.step();
        _tile_loadd(4, scores_at(probabilities, b * block_size, 0), 64);
        _tile_loadd(6, values(b, tile(0)), 64);
        _tile_loadd(7, values(b, tile(1)), 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        if constexpr (row_tiles == 2) {
          _tile_loadd(5, scores_at(probabilities, b * block_size, 16), 64);
          _tile_dpbf16ps(2, 5, 6);
          _tile_dpbf16ps(3, 5, 7);
        } else {
          _tile_loadd(6, values(b, tile(2)), 64);
          _tile_loadd(7, values(b, tile(3)), 64);
          _tile_dpbf16ps(2, 4, 6);
          _tile_dpbf16ps(3, 4, 7);
        }
      }
      constexpr int row_of_2 = row_tiles == 2 ? 16 : 0, tile_of_2 = row_tiles == 2 ? 0 : 2;
      _tile_stored(0, out + tile(0) * 16, columns * 4);
      _tile_stored(1, out + tile(1) * 16, columns * 4);
      _tile_stored(2, out + row_of_2 * columns + tile(tile_of_2) * 16, columns * 4);
      _tile_stored(3, out + row_of_2 * columns + tile(tile_of_2 + 1) * 16, columns * 4);
    }
  }

  Tiles tiles_;

#else

  static void multiply_keys(const Queries& queries, int rows, const std::byte* head, Fetch& fetch, float* scores) {
    each_row_group(rows, fetch, [&](int row, auto count, Fetch& of_group) {
      for (int side = 0; side < 2; ++side) {
        PairSums<count> sums;
        sums.add(queries.rows[row], depth, head + side * side_bytes, Shape::head_dim / 2, of_group);
        unrolled<count>([&](auto r) __attribute__((always_inline)) { store(scores_at(scores, side * lanes, row + r), sums.sum(r)); });
      }
    });
  }

  static void multiply_values(const float* probabilities, int rows, const Blocks& blocks, Fetch& fetch, float* out) {
    constexpr int together = 64 / sizeof(Factor);  // tokens whose probabilities lie together
    stream_values<Shape, tile_bytes, 1, PairSums>(
        rows, blocks, fetch,
        [&](auto& sums, int row, int block, const std::byte* tile, Fetch& of_group) __attribute__((always_inline)) {
          for (int slot = 0; slot < block_size; slot += together) {
            const auto* factors = reinterpret_cast<const Factor*>(scores_at(probabilities, block * block_size + slot, row));
            sums.add(factors, together, tile + slot * 32, together / 2, of_group);
          }
        },
        [&](int row, int column, const auto& sums, auto r) __attribute__((always_inline)) {
          store(out + (row + r) * columns + column, sums.sum(r));
        });
  }
#endif
};

}  // namespace slipway::paged_attention
