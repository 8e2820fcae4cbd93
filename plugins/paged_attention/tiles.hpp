// AMX's tile registers: 0 to 3 hold sums, 4 and 5 rows of queries or probabilities, 6 and 7 lines of a KV block.
#pragma once
#include <algorithm>
#include <cstdint>

#if defined(__AMX_TILE__)
#include <immintrin.h>

namespace slipway::paged_attention {

// Their shapes, for as long as this lives.
class Tiles {
 public:
  ~Tiles() { _tile_release(); }

  // rows: of a tile of queries, most 16; row_bytes: of one, and four lines of the block for 16 of them.
  void use(int rows, int row_bytes = 64) {
    rows = std::min(rows, 16);
    if (rows == rows_ && row_bytes == row_bytes_) return;
    alignas(64) uint8_t config[64] = {1};
    for (int tile = 0; tile < 8; ++tile) {
      config[16 + 2 * tile] = tile == 4 || tile == 5 ? row_bytes : 64;
      config[48 + tile] = tile < 6 ? rows : row_bytes / 4;
    }
    asm volatile("" ::"r"(config) : "memory");  // gcc 12 drops the stores otherwise
    _tile_loadconfig(config);
    rows_ = rows, row_bytes_ = row_bytes;
  }

 private:
  int rows_ = 0, row_bytes_ = 0;
};

// Zeroes the sums. gcc's tile loads do not say that they read memory: what is to be multiplied must be stored by now.
inline void begin_sums() {
  asm volatile("" ::: "memory");
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
}

}  // namespace slipway::paged_attention
#endif
