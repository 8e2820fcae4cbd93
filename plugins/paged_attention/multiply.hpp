// Query rows times a KV block: on AMX with the block's halves as B tiles, else with 16 tokens or columns a vector.
//
// Each row's sums run in the order of the positions (or of the dimensions), whatever else is in the tile.
#pragma once
#include "paged_attention/layout.hpp"

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

inline void store_probabilities(float* at, f32x16 first, f32x16 second) {
  _mm512_storeu_si512(at, reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(second.v, first.v)));
}

#else

struct Tiles {
  void use(int) {}
};

// Adds factors[rows][2 * pairs] . pairs[pairs][16][2] to 16 columns; even and odd factors sum apart.
template <int rows>
struct Sums {
  f32x16 even[rows], odd[rows];
  Sums() {
    for (int r = 0; r < rows; ++r) even[r] = odd[r] = f32x16::splat(0);
  }
  void add(const float* factors, int64_t factor_stride, const std::byte* pairs, int64_t pair_stride, int count) {
    for (int i = 0; i < count; ++i) {
      const auto [low, high] = load_pairs(pairs + i * pair_stride);
      for (int r = 0; r < rows; ++r) {
        even[r] = fma(f32x16::splat(factors[r * factor_stride + 2 * i]), low, even[r]);
        odd[r] = fma(f32x16::splat(factors[r * factor_stride + 2 * i + 1]), high, odd[r]);
      }
    }
  }
  void store(float* out, int64_t stride) const {
    for (int r = 0; r < rows; ++r) slipway::store(out + r * stride, even[r] + odd[r]);
  }
};

// Calls body with 4, or with the number of rows left, as a constant.
template <class Body>
void for_row_groups(int rows, Body body) {
  int row = 0;
  for (; row + 4 <= rows; row += 4) body(row, std::integral_constant<int, 4>{});
  if (rows - row == 3) body(row, std::integral_constant<int, 3>{});
  if (rows - row == 2) body(row, std::integral_constant<int, 2>{});
  if (rows - row == 1) body(row, std::integral_constant<int, 1>{});
}

template <class Shape>
void multiply_keys(const float* queries, int rows, const std::byte* keys, const std::byte* next, float* scores) {
  begin_pages(next, Layout<Shape>::keys_bytes);
  constexpr int depth = Layout<Shape>::depth;
  constexpr int64_t half = Layout<Shape>::keys_bytes / 2;
  for_row_groups(rows, [&](int row, auto count) {
    for (int side = 0; side < 2; ++side) {
      Sums<count> sums;
      sums.add(queries + row * depth, depth, keys + side * half, 64, Shape::head_dim / 2);
      sums.store(scores_at(scores, side * 16, row), lanes);
    }
  });
}

template <class Shape>
void multiply_values(const float* probabilities, int rows, const Blocks& blocks, const std::byte* next, float* out) {
  using L = Layout<Shape>;
  for_row_groups(rows, [&](int row, auto group) {
    for (int tile = 0; tile < L::columns / lanes; ++tile) {
      Sums<group> sums;
      for (int b = 0; b < blocks.count; ++b) {
        const std::byte* values = blocks.keys[b] + L::keys_bytes + tile * L::value_tile_bytes;
        for (int side = 0; side < 2; ++side) {
          const float* factors = scores_at(probabilities, b * block_size + side * 16, row);
          sums.add(factors, lanes, values + side * L::value_tile_bytes / 2, 64, 8);
        }
      }
      sums.store(out + row * L::columns + tile * lanes, L::columns);
    }
  });
  begin_pages(next, L::keys_bytes);
}

inline void store_probabilities(float* at, f32x16 first, f32x16 second) {
  store(at, first);
  store(at + score_stride, second);
}

#endif

}  // namespace slipway::paged_attention
