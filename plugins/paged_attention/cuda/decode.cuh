// Sequences with at most sixteen query rows a KV head: decoding, and the verification of drafts.
//
// The blocks of a sequence and KV head are shared among the `splits` of the grid, and those of a split among four warps, which read
// keys and values straight into registers. Warps merge in shared memory; splits through scratch, by the last that comes, in their order.
#pragma once
#include "paged_attention/cuda/softmax.cuh"

namespace slipway::cuda::paged_attention {

inline constexpr int decode_warps = 4, decode_threads = 32 * decode_warps;
inline constexpr int least_blocks = 2 * decode_warps;  // of a split, if it is not the only one

template <class S> struct DecodeShared {
  float outputs[decode_warps][tile_rows][S::head_dim];
  float maxima[decode_warps][tile_rows], sums[decode_warps][tile_rows];
  uint32_t arrival;  // of this split
};

// What a split has come to, of each row; `outputs` are weighted sums, not yet divided.
template <class S> struct Partial {
  float maxima[tile_rows], sums[tile_rows], outputs[tile_rows][S::head_dim];
};

// The first position that a row at `position` sees.
template <class S> inline int first_visible(int position) { return S::window > 0 ? max(0, position - S::window + 1) : 0; }

// Weights that bring sums with maxima of their own to a common one.
inline float weight_of(float maximum, float common) { return maximum == -infinity() ? 0 : exp2_approximate(maximum - common); }

// Blocks along x are splits, along y KV heads, along z sequences. scratch: Partial [sequences][kv_heads][splits];
// counters: [sequences][kv_heads]. Neither is used where there is one split.
template <class S> inline void decode(const Call& call) {
  constexpr int group = Layout<S>::group;
  const Batch& batch = *call.batch;
  const int number = static_cast<int>(blockIdx.z), kv_head = static_cast<int>(blockIdx.y), split = static_cast<int>(blockIdx.x);
  if (number >= batch.num_seqs) return;
  const Sequence of = sequence_of(batch, number);
  const int count = of.count * group;
  if (count > tile_rows) return;  // prefill's
  const int first_block = first_visible<S>(of.length - of.count) / block_tokens, end_block = (of.length + block_tokens - 1) / block_tokens;
  const int blocks = end_block - first_block, splits = min(static_cast<int>(gridDim.x), (blocks + least_blocks - 1) / least_blocks);
  if (split >= splits) return;
  const int share = (blocks + splits - 1) / splits, begin = first_block + split * share, end = min(begin + share, end_block);

  const int warp = static_cast<int>(threadIdx.x) / 32, g = lane() / 4, q = lane() % 4;
  Rows<S> rows;
  rows.begin(call, of, kv_head, 0, count);
  for (int block = begin + warp; block < end; block += decode_warps) {
    const std::byte* head = head_of<S>(call, of.blocks[block], kv_head);
    const bool visible = (block + 1) * block_tokens <= of.length - of.count + 1 && (S::window == 0 || block * block_tokens > of.length - 1 - S::window);
    rows.attend(head, block * block_tokens, of.length, visible);
  }

  auto& s = shared<DecodeShared<S>>();
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const float sum = quad_sum(rows.sums[i]);
    if (q == 0) s.maxima[warp][g + 8 * i] = rows.maxima[i], s.sums[warp][g + 8 * i] = sum;
#pragma unroll
    for (int n = 0; n < Rows<S>::value_tiles; ++n)
#pragma unroll
      for (int j = 0; j < 2; ++j) s.outputs[warp][g + 8 * i][8 * n + 2 * q + j] = rows.outputs[n][2 * i + j];
  }
  __syncthreads();

  const auto write = [&](int row, int d, float maximum, float sum, float output) {
    const int token = of.first + row / group, head = kv_head * group + row % group;
    store(call.outputs[0].row<typename S::Out>(token) + head * S::head_dim + d, output / with_sink(Weights<S>(call), head, maximum, sum));
  };
  auto* partials = reinterpret_cast<Partial<S>*>(call.scratch) + (int64_t{number} * S::kv_heads + kv_head) * gridDim.x;
  for (int i = static_cast<int>(threadIdx.x); i < count * S::head_dim; i += decode_threads) {
    const int row = i / S::head_dim, d = i % S::head_dim;
    float common = s.maxima[0][row];
#pragma unroll
    for (int w = 1; w < decode_warps; ++w) common = max(common, s.maxima[w][row]);
    float sum = 0, output = 0;
#pragma unroll
    for (int w = 0; w < decode_warps; ++w) {
      const float weight = weight_of(s.maxima[w][row], common);
      sum += weight * s.sums[w][row];
      output += weight * s.outputs[w][row][d];
    }
    if (splits == 1) {
      write(row, d, common, sum, output);
    } else {
      partials[split].outputs[row][d] = output;
      if (d == 0) partials[split].maxima[row] = common, partials[split].sums[row] = sum;
    }
  }
  if (splits == 1) return;

  __threadfence();
  __syncthreads();
  const uint32_t last = static_cast<uint32_t>(splits) - 1;
  if (threadIdx.x == 0) s.arrival = increment_wrapping(call.counters + number * S::kv_heads + kv_head, last);
  __syncthreads();
  if (s.arrival != last) return;
  __threadfence();
  for (int i = static_cast<int>(threadIdx.x); i < count * S::head_dim; i += decode_threads) {
    const int row = i / S::head_dim, d = i % S::head_dim;
    float common = -infinity(), sum = 0, output = 0;
    for (int k = 0; k < splits; ++k) common = max(common, partials[k].maxima[row]);
    for (int k = 0; k < splits; ++k) {
      const float weight = weight_of(partials[k].maxima[row], common);
      sum += weight * partials[k].sums[row];
      output += weight * partials[k].outputs[row][d];
    }
    write(row, d, common, sum, output);
  }
}

}  // namespace slipway::cuda::paged_attention
