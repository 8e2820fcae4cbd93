// Sequences with more than sixteen query rows a KV head: a block has 64 of them, a warp sixteen.
//
// Keys and values of a KV block go through shared memory for all four warps, `stages` blocks under way.
#pragma once
#include "paged_attention/cuda/decode.cuh"

namespace slipway::cuda::paged_attention {

inline constexpr int prefill_warps = 4, prefill_threads = 32 * prefill_warps, prefill_rows = prefill_warps * tile_rows, stages = 2;

template <class S> struct PrefillShared {
  alignas(16) std::byte heads[stages][Layout<S>::head_bytes];
};

// Some rows of one sequence. count: how many of them there are.
struct RowTile {
  Sequence of;
  int first_row, count;
};

// The tile of a number, in the order of sequences; count is 0 beyond the last. Each warp looks by itself, at 32 sequences at a time.
template <class S, int tile> inline RowTile row_tile(const Batch& batch, int number) {
  for (int first = 0; first < batch.num_seqs; first += 32) {
    const int seq = first + lane();
    const int rows = seq < batch.num_seqs ? (batch.cu_seqlens[seq + 1] - batch.cu_seqlens[seq]) * Layout<S>::group : 0;
    const int tiles = rows > tile_rows ? (rows + tile - 1) / tile : 0;
    int until = tiles;  // with those of the sequences before
#pragma unroll
    for (int back = 1; back < 32; back *= 2) {
      const int before = __shfl_sync(~0u, until, max(lane() - back, 0));
      if (lane() >= back) until += before;
    }
    if (const uint32_t beyond = __ballot_sync(~0u, number < until)) {
      const int found = __ffs(beyond) - 1, begin = __shfl_sync(~0u, until - tiles, found), of_rows = __shfl_sync(~0u, rows, found);
      const int first_row = (number - begin) * tile;
      return {sequence_of(batch, first + found), first_row, min(tile, of_rows - first_row)};
    }
    number -= __shfl_sync(~0u, until, 31);
  }
  return {{}, 0, 0};
}

// Blocks along x are row tiles, along y KV heads.
template <class S> inline void prefill(const Call& call) {
  constexpr int group = Layout<S>::group, pieces = Layout<S>::head_bytes / 16;
  const int kv_head = static_cast<int>(blockIdx.y), warp = static_cast<int>(threadIdx.x) / 32;
  const RowTile tile = row_tile<S, prefill_rows>(*call.batch, static_cast<int>(blockIdx.x));
  if (!tile.count) return;
  const Sequence& of = tile.of;
  const auto position = [&](int row) { return of.length - of.count + (tile.first_row + row) / group; };
  const int first_block = first_visible<S>(position(0)) / block_tokens, end_block = position(tile.count - 1) / block_tokens + 1;

  auto& s = shared<PrefillShared<S>>();
  const auto stage = [&](int block) {
    if (block < end_block) {
      const std::byte* head = head_of<S>(call, of.blocks[block], kv_head);
      for (int i = static_cast<int>(threadIdx.x); i < pieces; i += prefill_threads) copy_async_16(s.heads[block % stages] + 16 * i, head + 16 * i, true);
    }
    commit_copies();
  };
#pragma unroll
  for (int i = 0; i < stages - 1; ++i) stage(first_block + i);

  const int own = max(0, min(tile_rows, tile.count - warp * tile_rows));  // rows of this warp
  Rows<S> rows;
  rows.begin(call, of, kv_head, tile.first_row + warp * tile_rows, own);
  const int from = own ? position(warp * tile_rows) : 0, to = own ? position(warp * tile_rows + own - 1) : -1;
  for (int block = first_block; block < end_block; ++block) {
    stage(block + stages - 1);
    wait_for_copies<stages - 1>();
    __syncthreads();
    const std::byte* head = s.heads[block % stages];
    const int begin = block * block_tokens, end = begin + block_tokens;
    if (begin <= to && end > first_visible<S>(from))
      rows.attend(head, begin, of.length, end <= from + 1 && begin >= first_visible<S>(to));
    __syncthreads();  // before the next copy takes the place of what is read here
  }

  const int g = lane() / 4, q = lane() % 4;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const float sum = quad_sum(rows.sums[i]);
    const int in_warp = g + 8 * i, row = tile.first_row + warp * tile_rows + in_warp, query_head = kv_head * group + row % group;
    if (in_warp >= own) continue;
    const float inverse = 1 / with_sink(Weights<S>(call), query_head, rows.maxima[i], sum);
    auto* out = call.outputs[0].row<typename S::Out>(of.first + row / group) + query_head * S::head_dim;
#pragma unroll
    for (int n = 0; n < Rows<S>::value_tiles; ++n)
#pragma unroll
      for (int j = 0; j < 2; ++j) store(out + 8 * n + 2 * q + j, rows.outputs[n][2 * i + j] * inverse);
  }
}

}  // namespace slipway::cuda::paged_attention
