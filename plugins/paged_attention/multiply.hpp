// Query rows times a KV block: on AMX with the block's halves as B tiles, else with 16 tokens or columns a vector.
//
// Each row's sums run in the order of the positions (or of the dimensions), whatever else is in the tile.
#pragma once
#include <bit>

#include "paged_attention/layout.hpp"
#include "slipway/unroll.hpp"

namespace slipway::paged_attention {

#if defined(__AMX_BF16__)

// The tiles, for as long as this lives: 6 and 7 hold 16 rows of a block, the others as many query rows as are in use.
class Tiles {
 public:
  ~Tiles() { _tile_release(); }

  void use(int rows) {
    rows = std::min(rows, 16);
    if (rows == rows_) return;
    alignas(64) uint8_t config[64] = {1};
    for (int tile = 0; tile < 8; ++tile) config[16 + 2 * tile] = 64, config[48 + tile] = tile < 6 ? rows : 16;
    asm volatile("" ::"r"(config) : "memory");  // gcc 12 drops the stores otherwise
    _tile_loadconfig(config);
    rows_ = rows;
  }

 private:
  int rows_ = 0;
};

// Zeroes the sums. gcc's tile loads do not say that they read memory: what is to be multiplied must be stored by now.
inline void begin_sums() {
  asm volatile("" ::: "memory");
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
}

// Scores of 32 positions = queries[rows][depth] . keys of one block. `next` is read after them.
template <class Shape, int row_tiles>
void multiply_keys(const bf16* queries, const std::byte* keys, const std::byte* next, float* scores) {
  constexpr int depth = Layout<Shape>::depth, stride = depth * 2;
  constexpr int64_t half = Layout<Shape>::keys_bytes / 2;
  if constexpr (row_tiles == 1) begin_pages(next, Layout<Shape>::keys_bytes);
  begin_sums();
  for (int k = 0; k < depth; k += 32) {  // the last step may read behind the keys: the queries are zero there
    _tile_loadd(6, keys + k * 32, 64);
    _tile_loadd(7, keys + half + k * 32, 64);
    _tile_loadd(4, queries + k, stride);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    if constexpr (row_tiles == 2) {
      _tile_loadd(5, queries + 16 * depth + k, stride);
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

// out[rows][columns] = probabilities . values of all blocks, four tiles of sums at a time. `next` is read after them.
template <class Shape, int row_tiles>
void multiply_values(const float* probabilities, const Blocks& blocks, const std::byte* next, float* out) {
  using L = Layout<Shape>;
  constexpr int columns = L::columns, tiles = columns / 16, step = 4 / row_tiles;
  for (int first = 0; first < tiles; first += step) {
    const auto tile = [&](int i) { return std::min(first + i, tiles - 1); };  // the last may repeat those before
    const auto values = [&](int block, int t) { return blocks.keys[block] + L::keys_bytes + t * L::value_tile_bytes; };
    begin_sums();
    for (int b = 0; b < blocks.count; ++b) {
      if constexpr (row_tiles == 1) {
        if (b + 1 < blocks.count) begin_pages(values(b + 1, first), step * L::value_tile_bytes);
        else if (first + step < tiles) begin_pages(values(0, first + step), step * L::value_tile_bytes);
        else begin_pages(next, L::keys_bytes);
      }
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

template <class Shape>
void multiply_keys(const bf16* queries, int rows, const std::byte* keys, const std::byte* next, float* scores) {
  if (rows <= 16) multiply_keys<Shape, 1>(queries, keys, next, scores);
  else multiply_keys<Shape, 2>(queries, keys, next, scores);
}

template <class Shape>
void multiply_values(const float* probabilities, int rows, const Blocks& blocks, const std::byte* next, float* out) {
  if (rows <= 16) multiply_values<Shape, 1>(probabilities, blocks, next, out);
  else multiply_values<Shape, 2>(probabilities, blocks, next, out);
}

#else

struct Tiles {
  void use(int) {}
};

// most_rows: query rows multiplied at a time. most_sums: vectors of sums that registers hold.
#if defined(__AVX512F__)
inline constexpr int most_rows = 8, most_sums = 24;
#else
inline constexpr int most_rows = 4, most_sums = 4;
#endif

// Sums of factors[rows][2 * pairs] times the 16 columns of words [pairs][16][2]. Memory from `next` on is fetched, as much as is
// read, unless it is null.
#if defined(__AVX512BF16__)

template <int rows>
struct Sums {
  __m512 sums[rows];

  Sums() {
    unrolled<rows>([&](auto r) __attribute__((always_inline)) { sums[r] = _mm512_setzero_ps(); });
  }
  [[gnu::always_inline]] void add(const bf16* factors, int64_t stride, const std::byte* words, int pairs, const std::byte* next) {
    for (int i = 0; i < pairs; ++i) {
      if (next) prefetch_line_to_l2(next + i * 64);
      const auto columns = reinterpret_cast<__m512bh>(_mm512_loadu_si512(words + i * 64));
      unrolled<rows>([&](auto r) __attribute__((always_inline)) {
        const auto factor = reinterpret_cast<__m512bh>(splat_word(factors + r * stride + 2 * i));
        sums[r] = _mm512_dpbf16_ps(sums[r], columns, factor);
      });
    }
  }
  f32x16 sum(int r) const { return {sums[r]}; }
};

#else

template <int rows>
struct Sums {
  f32x16 sums[rows];

  Sums() {
    unrolled<rows>([&](auto r) __attribute__((always_inline)) { sums[r] = f32x16::splat(0); });
  }
  [[gnu::always_inline]] void add(const float* factors, int64_t stride, const std::byte* words, int pairs, const std::byte* next) {
    for (int i = 0; i < pairs; ++i) {
      if (next) prefetch_line_to_l2(next + i * 64);
      const auto [even, odd] = load_pairs(words + i * 64);
      unrolled<rows>([&](auto r) __attribute__((always_inline)) {
        const f32x16 partial = fma(f32x16::splat(factors[r * stride + 2 * i]), even, sums[r]);
        sums[r] = fma(f32x16::splat(factors[r * stride + 2 * i + 1]), odd, partial);
      });
    }
  }
  f32x16 sum(int r) const { return sums[r]; }
};

#endif

// Calls body with `most_rows` rows at a time, then with those left, as a constant.
template <class Body>
void for_row_groups(int rows, Body body) {
  for (int row = 0; row < rows; row += most_rows) {
    with_constant<most_rows>(std::min(most_rows, rows - row), [&](auto count) { body(row, count); });
  }
}

template <class Shape>
void multiply_keys(const Factor* queries, int rows, const std::byte* keys, const std::byte* next, float* scores) {
  constexpr int depth = Layout<Shape>::depth;
  constexpr int64_t half = Layout<Shape>::keys_bytes / 2;
  for_row_groups(rows, [&](int row, auto count) {
    for (int side = 0; side < 2; ++side) {
      Sums<count> sums;
      sums.add(queries + row * depth, depth, keys + side * half, Shape::head_dim / 2, row == 0 ? next + side * half : nullptr);
      unrolled<count>([&](auto r) __attribute__((always_inline)) { store(scores_at(scores, side * lanes, row + r), sums.sum(r)); });
    }
  });
}

// out[rows][columns] = probabilities . values of all blocks, as many tiles of columns at a time as there are registers for: what
// lies together in memory is read together.
template <class Shape>
void multiply_values(const float* probabilities, int rows, const Blocks& blocks, const std::byte* next, float* out) {
  using L = Layout<Shape>;
  constexpr int tiles = L::columns / lanes, pairs = factors_in_line / 2;  // of tokens whose probabilities lie together
  for_row_groups(rows, [&](int row, auto count) {
    constexpr int held = std::min<int>({tiles, 8, static_cast<int>(std::bit_floor(static_cast<unsigned>(most_sums / count)))});
    constexpr int parts = (tiles + held - 1) / held, ahead = (4 + held - 1) / held;
    const auto values = [&](int block, int part) { return blocks.keys[block] + L::keys_bytes + part * held * L::value_tile_bytes; };
    const auto later = [&](int part, int block) {  // what is read `ahead` blocks after this one
      part += (block + ahead) / blocks.count, block = (block + ahead) % blocks.count;
      return part < parts ? values(block, part) : next + ((part - parts) * blocks.count + block) * held * L::value_tile_bytes;
    };
    for (int part = 0; part < parts; ++part) {
      const int last = tiles - 1 - part * held;  // tiles of the last part beyond it repeat it
      Sums<count> sums[held];
      for (int b = 0; b < blocks.count; ++b) {
        const std::byte* fetch = row == 0 ? later(part, b) : nullptr;
        unrolled<held>([&](auto t) __attribute__((always_inline)) {
          const std::byte* tile = values(b, part) + std::min<int>(t, last) * L::value_tile_bytes;
          for (int slot = 0; slot < block_size; slot += factors_in_line) {
            const auto* factors = reinterpret_cast<const Factor*>(scores_at(probabilities, b * block_size + slot, row));
            sums[t].add(factors, lanes * sizeof(float) / sizeof(Factor), tile + slot * 32, pairs,
                        fetch ? fetch + t * L::value_tile_bytes + slot * 32 : nullptr);
          }
        });
      }
      unrolled<held>([&](auto t) __attribute__((always_inline)) {
        unrolled<count>([&](auto r) __attribute__((always_inline)) {
          store(out + (row + r) * L::columns + (part * held + std::min<int>(t, last)) * lanes, sums[t].sum(r));
        });
      });
    }
  });
}

#endif

#if defined(__AVX512BF16__)
inline void store_probabilities(float* at, f32x16 first, f32x16 second) {
  _mm512_storeu_si512(at, reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(second.v, first.v)));
}
#else
inline void store_probabilities(float* at, f32x16 first, f32x16 second) {
  store(at, first);
  store(at + score_stride, second);
}
#endif

}  // namespace slipway::paged_attention
