// Where things lie: KV blocks, the scores and the state of a tile of query rows.
#pragma once
#include <cstring>
#include <utility>

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

// Scores of a chunk: [chunk / 16][tile_rows][16] float32, `score_stride` apart: what AMX stores is contiguous. The
// probabilities take their place.
inline float* scores_at(float* scores, int position, int row) { return scores + position / lanes * score_stride + row * lanes; }
inline const float* scores_at(const float* scores, int position, int row) {
  return scores + position / lanes * score_stride + row * lanes;
}

// What Shape::Cache (bf16_cache.hpp, int8_planes.hpp, int8_floats.hpp) says of a format: how one KV head of a block lies in memory, keys first; how
// keys and values get there and queries are prepared; and the two products, with what comes between them:
//
//   values_at, head_bytes           where the values begin, and the whole
//   store_key, store_value          one token's head into its slot
//   Queries, prepare                a tile of query rows as they are multiplied
//   multiply_keys                   -> scores of one block, float32
//   weigh                           scores of a chunk -> probabilities as they are multiplied, and their sums
//   multiply_values                 -> outputs of a chunk, float32
//
// Products ask for what is read `fetch_ahead` bytes later: of keys, as much from `later` on as they read themselves.
template <class Shape>
struct Layout {
  using Cache = typename Shape::Cache;
  static constexpr int group = Shape::heads / Shape::kv_heads;
  static constexpr int columns = (Shape::head_dim + lanes - 1) / lanes * lanes;  // of values and outputs: behind head_dim, anything

  static std::byte* block(const Call& call, int seq, int index, int kv_head) {
    const int64_t id = call.batch->block_table[int64_t{seq} * call.batch->max_blocks + index];
    return call.kv + (id * Shape::kv_heads + kv_head) * Cache::head_bytes;
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
  const std::byte* heads[chunk / block_size];  // one KV head of each
};

// The heads whose keys are read first after a chunk.
inline constexpr int64_t fetch_ahead = 8192;
template <int64_t keys_bytes>
struct Upcoming {
  static constexpr int count = static_cast<int>((fetch_ahead + keys_bytes - 1) / keys_bytes);
  const std::byte* heads[count];
};

// Sets the hardware's prefetchers off on memory that is read soon: they stop at the end of each page.
inline void begin_pages(const std::byte* at, int64_t bytes) {
  for (int64_t page = 0; page < bytes; page += 4096) {
    for (int line = 0; line < 8; ++line) _mm_prefetch(at + page + line * 64, _MM_HINT_T1);
  }
}

template <int64_t keys_bytes>
void begin_pages(const Upcoming<keys_bytes>& next) {
  for (const std::byte* head : next.heads) begin_pages(head, keys_bytes);
}

// Softmax of a tile of query rows over some positions: out = sum of exp2(score - peak) * value, before the division.
template <int columns>
struct State {
  float peak[tile_rows];  // -inf: no position seen
  float sum[tile_rows];
  float out[tile_rows][columns];
};

inline constexpr float nothing = -__builtin_inff();

// One vector a row: what the scores of a chunk have come to so far.
using Folds = float[tile_rows][lanes];

inline void fill(Folds& folds, int rows, float value) {
  for (int r = 0; r < rows; ++r) store(folds[r], f32x16::splat(value));
}

// The probabilities of a row, before the division, from its scores of a block's two halves; their sum is folded. Of a row whose scores
// are all hidden they are zero.
inline std::pair<f32x16, f32x16> probabilities_of(const float* scores, float peak, float* sums) {
  const f32x16 shift = f32x16::splat(peak == nothing ? 0 : peak);
  const f32x16 first = exp2(load(scores) - shift), second = exp2(load(scores + score_stride) - shift);
  store(sums, load(sums) + (first + second));
  return {first, second};
}

}  // namespace slipway::paged_attention
