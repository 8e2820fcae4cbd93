// AMX's tile intrinsics as functions, for processors that have none: kernels compiled for AMX run, and by its rules.
//
// To be included before all else. Each function is the operation of that name in Intel's manual (Software Developer's Manual,
// volume 2); what raises an exception there ends the process with a sentence here. What the compiler does to real tile intrinsics, it
// cannot show.
#pragma once
#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#define __AMX_TILE__ 1
#define __AMX_BF16__ 1
#define __AMX_INT8__ 1
#undef _tile_loadd
#undef _tile_stored
#undef _tile_zero
#undef _tile_dpbf16ps
#undef _tile_dpbsud
#undef _tile_dpbusd
#define _tile_loadconfig emulated_amx::load_config
#define _tile_release emulated_amx::release
#define _tile_loadd emulated_amx::load
#define _tile_stored emulated_amx::store
#define _tile_zero emulated_amx::zero
#define _tile_dpbf16ps emulated_amx::dot_bf16
#define _tile_dpbsud emulated_amx::dot_bytes<int8_t, uint8_t>
#define _tile_dpbusd emulated_amx::dot_bytes<uint8_t, int8_t>

namespace emulated_amx {

struct Tile {
  int rows = 0, row_bytes = 0;  // as configured
  alignas(64) uint8_t data[16][64] = {};
};
inline thread_local Tile tiles[8];

inline void require(bool holds, const char* sentence) {
  if (holds) return;
  std::fprintf(stderr, "AMX: %s\n", sentence);
  std::abort();
}

inline Tile& configured(int tile) {
  require(tiles[tile].rows > 0, "a tile that is not configured");
  return tiles[tile];
}

inline void load_config(const void* at) {
  uint8_t config[64];
  std::memcpy(config, at, sizeof config);
  require(config[0] == 1 && config[1] == 0, "a configuration that is not of palette 1, from row 0");
  const auto zeros = [&](int begin, int end) { return std::all_of(config + begin, config + end, [](uint8_t byte) { return byte == 0; }); };
  require(zeros(2, 16) && zeros(32, 48) && zeros(56, 64), "a configuration whose reserved bytes are not zero");
  for (int tile = 0; tile < 8; ++tile) {
    tiles[tile] = {};
    std::memcpy(&tiles[tile].row_bytes, config + 16 + 2 * tile, 2);
    tiles[tile].rows = config[48 + tile];
    require(tiles[tile].rows <= 16 && tiles[tile].row_bytes <= 64, "a tile larger than 16 rows of 64 bytes");
    require((tiles[tile].rows == 0) == (tiles[tile].row_bytes == 0), "a tile with rows or columns alone");
  }
}

inline void release() {
  for (Tile& tile : tiles) tile = {};
}

inline void zero(int tile) { std::memset(configured(tile).data, 0, sizeof Tile::data); }

inline void load(int tile, const void* base, int64_t stride) {
  zero(tile);
  for (int row = 0; row < tiles[tile].rows; ++row) {
    std::memcpy(tiles[tile].data[row], static_cast<const uint8_t*>(base) + row * stride, tiles[tile].row_bytes);
  }
}

inline void store(int tile, void* base, int64_t stride) {
  for (int row = 0; row < configured(tile).rows; ++row) {
    std::memcpy(static_cast<uint8_t*>(base) + row * stride, tiles[tile].data[row], tiles[tile].row_bytes);
  }
}

inline void check_shapes(const Tile& c, const Tile& a, const Tile& b) {
  require(c.rows == a.rows, "sums and first factor of different rows");
  require(c.row_bytes == b.row_bytes, "sums and second factor of different columns");
  require(a.row_bytes == 4 * b.rows && c.row_bytes % 4 == 0, "factors that do not fit each other");
  require(&c != &a && &a != &b && &c != &b, "the same tile twice");
}

// What is denormal counts as zero.
inline float flushed(float x) { return std::fpclassify(x) == FP_SUBNORMAL ? std::copysign(0.f, x) : x; }

inline void dot_bf16(int sums, int first, int second) {
  Tile &c = configured(sums), &a = configured(first), &b = configured(second);
  check_shapes(c, a, b);
  const auto widen = [](const uint8_t* at) {
    uint32_t bits = 0;
    std::memcpy(reinterpret_cast<uint8_t*>(&bits) + 2, at, 2);
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return flushed(value);
  };
  for (int m = 0; m < c.rows; ++m) {
    float even[16] = {}, odd[16] = {}, sum[16];
    for (int k = 0; k < b.rows; ++k) {
      const float a_even = widen(a.data[m] + 4 * k), a_odd = widen(a.data[m] + 4 * k + 2);
      for (int n = 0; n < c.row_bytes / 4; ++n) {
        even[n] += a_even * widen(b.data[k] + 4 * n);
        odd[n] += a_odd * widen(b.data[k] + 4 * n + 2);
      }
    }
    std::memcpy(sum, c.data[m], sizeof sum);
    for (int n = 0; n < 16; ++n) sum[n] = flushed(flushed(sum[n]) + flushed(even[n] + odd[n]));
    std::memcpy(c.data[m], sum, c.row_bytes);
  }
}

template <class First, class Second>
void dot_bytes(int sums, int first, int second) {
  Tile &c = configured(sums), &a = configured(first), &b = configured(second);
  check_shapes(c, a, b);
  for (int m = 0; m < c.rows; ++m) {
    int32_t sum[16];
    std::memcpy(sum, c.data[m], sizeof sum);
    for (int k = 0; k < b.rows; ++k) {
      for (int n = 0; n < c.row_bytes / 4; ++n) {
        for (int i = 0; i < 4; ++i) sum[n] += static_cast<First>(a.data[m][4 * k + i]) * static_cast<Second>(b.data[k][4 * n + i]);
      }
    }
    std::memcpy(c.data[m], sum, c.row_bytes);
  }
}

}  // namespace emulated_amx
