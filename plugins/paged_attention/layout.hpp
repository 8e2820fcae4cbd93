// Where things lie: KV blocks, the scores and the state of a tile of query rows.
#pragma once
#include <algorithm>
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
//   key_steps, value_steps          of `fetch`, in the products with a block
//   store_key, store_value          one token's head into its slot
//   Queries, prepare                a tile of query rows as they are multiplied
//   multiply_keys                   -> scores of one block, float32
//   weigh                           scores of a chunk -> probabilities as they are multiplied, and their sums
//   multiply_values                 -> outputs of a chunk, float32
//
// Products and weigh() step on a `fetch` of what is read after them: products at least so often a block, with the first rows of a
// tile, weigh() for each block and row.
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

// Asks for keys or values of some blocks long before they are read: evenly over the steps of the work that comes before.
//
// A core keeps few lines under way at a time and a line may take long: asked for late, or in bursts, they hold up the work.
// On AMX the first lines, there and in every page of 4 KB, are enough: they set the hardware's prefetchers off, which stop at the
// end of a page.
template <void (*ask)(const void*)>
class FetchBy {
 public:
  FetchBy() = default;
  // `bytes`, whole lines, from `offset` on of each head, in so many steps or fewer; `blocks` stay where they are.
  FetchBy(const Blocks& blocks, int64_t offset, int64_t bytes, int64_t steps)
      : blocks_(&blocks), offset_(offset), bytes_(bytes) {
    int64_t lines = 0;
    for (int i = 0; i < blocks.count; ++i) lines += lines_of(blocks.heads[i] + offset, bytes);
    if (steps > 0) portion_ = static_cast<int>((lines + steps - 1) / steps);
  }

  [[gnu::always_inline]] void step(int count = 1) {
    for (int left = count * portion_; left > 0; --left) {
      if (line_ == end_ && !enter()) return;
      ask(line_);
      line_ += 64;
      if (page_lines == 64) continue;
      if (in_page(line_) == 0) first_ = line_;
      else if (line_ - first_ == page_lines * 64) first_ = line_ = std::min(line_ + 4096 - in_page(line_), end_);
    }
  }

 private:
#if defined(__AMX_TILE__)
  static constexpr int64_t page_lines = 8;
#else
  static constexpr int64_t page_lines = 64;
#endif
  static int64_t in_page(const std::byte* at) { return reinterpret_cast<uintptr_t>(at) % 4096; }
  static int64_t lines_of(const std::byte* begin, int64_t bytes) {
    const int64_t head = page_lines == 64 ? 0 : std::min(4096 - in_page(begin), bytes), rest = bytes - head;
    return std::min(head / 64, page_lines) + rest / 4096 * page_lines + std::min(rest % 4096 / 64, page_lines);
  }

  [[gnu::always_inline]] bool enter() {
    if (next_ == blocks_->count) return portion_ = 0, false;
    first_ = line_ = blocks_->heads[next_++] + offset_;
    end_ = line_ + bytes_;
    return true;
  }

  const Blocks* blocks_ = nullptr;
  int64_t offset_ = 0, bytes_ = 0;
  int portion_ = 0, next_ = 0;
  const std::byte *first_ = nullptr, *line_ = nullptr, *end_ = nullptr;  // first_: of the lines that go together
};
using Fetch = FetchBy<prefetch_line_to_l2>;

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
