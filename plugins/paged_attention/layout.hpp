// Where things lie: the KV cache, the packed queries, the state of a tile of query rows.
#pragma once
#include <cstring>

#include "slipway/abi.hpp"
#include "slipway/simd.hpp"

namespace slipway::paged_attention {

inline constexpr int block_size = 32;       // tokens of a KV block
inline constexpr int chunk = 512;           // positions between two merges
inline constexpr int tile_rows = 32;        // query rows multiplied at a time: two AMX tiles
inline constexpr int few_rows = 16;         // whose keys and values are written by the thread that attends to them
inline constexpr int item_tiles = 4;        // most tiles of a work item
inline constexpr int score_stride = tile_rows * lanes + lanes;  // floats; a line more than a power of two, for the cache's sets
inline constexpr int slots = 128;           // most tiles whose chunks are split over threads
inline constexpr float log2e = 1.4426950408889634f;

// Queries and probabilities as the multiplier reads them.
#if defined(__AVX512BF16__)
using Factor = bf16;
#else
using Factor = float;
#endif
inline constexpr int factors_in_line = 64 / sizeof(Factor);

// Scores of a chunk: [chunk / 16][tile_rows][16] float32, `score_stride` apart: what AMX stores is contiguous. The
// probabilities take their place, as Factor: 32 bf16 of a row in one line, where the first 16 of their scores were.
inline float* scores_at(float* scores, int position, int row) { return scores + position / lanes * score_stride + row * lanes; }
inline const float* scores_at(const float* scores, int position, int row) {
  return scores + position / lanes * score_stride + row * lanes;
}

template <class Shape>
struct Layout {
  static constexpr int group = Shape::heads / Shape::kv_heads;
  static constexpr int depth = (Shape::head_dim + 31) / 32 * 32;  // columns of a prepared query, zero behind head_dim
  static constexpr int columns = (Shape::head_dim + lanes - 1) / lanes * lanes;  // of values and outputs: behind head_dim, anything
  static constexpr int64_t keys_bytes = block_size * Shape::head_dim * 2;
  static constexpr int64_t value_tile_bytes = block_size * lanes * 2;
  static constexpr int64_t head_bytes = keys_bytes + columns / lanes * value_tile_bytes;
  static constexpr int64_t block_bytes = Shape::kv_heads * head_bytes;

  static std::byte* block(const Call& call, int seq, int index, int kv_head) {
    const int64_t id = call.batch->block_table[int64_t{seq} * call.batch->max_blocks + index];
    return call.kv + id * block_bytes + kv_head * head_bytes;
  }
};

// Query rows (token, head of the group) of a sequence and KV head.
template <class Shape>
int num_rows(const Batch& batch, int seq) {
  return (batch.cu_seqlens[seq + 1] - batch.cu_seqlens[seq]) * Layout<Shape>::group;
}

// The blocks of a chunk that some rows see, from the chunk's block `first` on.
struct Blocks {
  int first = 0, count = 0;
  const std::byte* keys[chunk / block_size];  // of one head; its values lie behind them
};

// Sets the hardware's prefetchers off on memory that is read soon: they stop at the end of each page.
inline void begin_pages(const std::byte* at, int64_t bytes) {
  for (int64_t page = 0; page < bytes; page += 4096) {
    for (int line = 0; line < 8; ++line) _mm_prefetch(at + page + line * 64, _MM_HINT_T1);
  }
}

// Softmax of a tile of query rows over some positions: out = sum of exp2(score - peak) * value, before the division.
template <int columns>
struct State {
  float peak[tile_rows];  // -inf: no position seen
  float sum[tile_rows];
  float out[tile_rows][columns];
};

inline constexpr float nothing = -__builtin_inff();

}  // namespace slipway::paged_attention
