// Query rows times a KV block: on AMX with the block's halves as B tiles, else with 16 tokens or columns a vector.
//
// Each row's sums run in the order of the positions (or of the dimensions), whatever else is in the tile.
#pragma once
#include "paged_attention/layout.hpp"

namespace slipway::paged_attention {

#if defined(__AMX_BF16__)

// All eight tiles 16 rows of 64 bytes, for as long as this lives.
struct Tiles {
  Tiles() {
    alignas(64) uint8_t config[64] = {1};
    for (int tile = 0; tile < 8; ++tile) config[16 + 2 * tile] = 64, config[48 + tile] = 16;
    asm volatile("" ::"r"(config) : "memory");  // gcc 12 drops the stores otherwise
    _tile_loadconfig(config);
  }
  ~Tiles() { _tile_release(); }
};

// Zeroes the sums. gcc's tile loads do not say that they read memory: what is to be multiplied must be stored by now.
inline void begin_sums() {
  asm volatile("" ::: "memory");
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
}

// Scores of 32 positions = queries[rows][depth] . keys of one block
template <class Shape, int row_tiles>
void multiply_keys(const bf16* queries, const std::byte* keys, float* scores) {
  constexpr int depth = Layout<Shape>::depth, stride = depth * 2;
  constexpr int64_t half = Layout<Shape>::keys_bytes / 2;
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

// out[rows][head_dim] = probabilities of 32 * count positions . values of `count` blocks
template <class Shape, int row_tiles>
void multiply_values(const float* probabilities, const std::byte* const* values, int count, float* out) {
  constexpr int head_dim = Shape::head_dim;
  for (int column = 0; column < head_dim; column += 32) {  // the last tiles may repeat columns of those before
    const int left = std::min(column, head_dim - 16), right = std::min(column + 16, head_dim - 16);
    begin_sums();
    for (int i = 0; i < count; ++i) {
      _tile_loadd(6, values[i] + left * 4, head_dim * 4);
      _tile_loadd(7, values[i] + right * 4, head_dim * 4);
      _tile_loadd(4, scores_at(probabilities, i * block_size, 0), 64);
      _tile_dpbf16ps(0, 4, 6);
      _tile_dpbf16ps(1, 4, 7);
      if constexpr (row_tiles == 2) {
        _tile_loadd(5, scores_at(probabilities, i * block_size, 16), 64);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
      }
    }
    _tile_stored(0, out + left, head_dim * 4);
    _tile_stored(1, out + right, head_dim * 4);
    if constexpr (row_tiles == 2) {
      _tile_stored(2, out + 16 * head_dim + left, head_dim * 4);
      _tile_stored(3, out + 16 * head_dim + right, head_dim * 4);
    }
  }
}

template <class Shape>
void multiply_keys(const bf16* queries, int rows, const std::byte* keys, float* scores) {
  if (rows <= 16) multiply_keys<Shape, 1>(queries, keys, scores);
  else multiply_keys<Shape, 2>(queries, keys, scores);
}

template <class Shape>
void multiply_values(const float* probabilities, int rows, const std::byte* const* values, int count, float* out) {
  if (rows <= 16) multiply_values<Shape, 1>(probabilities, values, count, out);
  else multiply_values<Shape, 2>(probabilities, values, count, out);
}

inline void store_probabilities(float* at, f32x16 first, f32x16 second) {
  _mm512_storeu_si512(at, reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(second.v, first.v)));
}

#else

struct Tiles {};

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
void multiply_keys(const float* queries, int rows, const std::byte* keys, float* scores) {
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
void multiply_values(const float* probabilities, int rows, const std::byte* const* values, int count, float* out) {
  constexpr int head_dim = Shape::head_dim;
  for_row_groups(rows, [&](int row, auto group) {
    for (int column = 0; column < head_dim; column += 16) {
      const int left = std::min(column, head_dim - 16);
      Sums<group> sums;
      for (int i = 0; i < count; ++i) {
        for (int side = 0; side < 2; ++side) {
          const float* factors = scores_at(probabilities, i * block_size + side * 16, row);
          sums.add(factors, lanes, values[i] + (side * 8 * head_dim + left) * 4, head_dim * 4, 8);
        }
      }
      sums.store(out + row * head_dim + left, head_dim);
    }
  });
}

inline void store_probabilities(float* at, f32x16 first, f32x16 second) {
  store(at, first);
  store(at + score_stride, second);
}

#endif

}  // namespace slipway::paged_attention
