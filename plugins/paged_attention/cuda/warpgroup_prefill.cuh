// Prefill with a bf16 cache from sm90a on: a block has 128 query rows of one sequence and KV head, sixty-four of a warpgroup each; a thread
// of a third brings keys and values, two KV blocks a stage and `stages` of them under way, in bulk copies.
//
// A warpgroup multiplies the keys of the next stage while it still multiplies values of this one, and weighs scores while those are
// multiplied (FlashAttention 3's overlap within a warpgroup); the other one fills the gaps.
#pragma once
#include "paged_attention/cuda/prefill.cuh"
#include "slipway/cuda/warpgroup.cuh"

namespace slipway::cuda::paged_attention::warpgroup {

inline constexpr int consumers = 2, consumer_threads = 128 * consumers, threads = consumer_threads + 128;
inline constexpr int consumer_registers = 240, producer_registers = 24;
static_assert(shares_fit(threads, consumer_threads * consumer_registers + 128 * producer_registers));
inline constexpr int rows_each = 64, stages = 4, stage_blocks = 2;

template <class S> struct Shared {
  alignas(1024) std::byte heads[stages][stage_blocks][Layout<S>::head_bytes];
  Barrier full[stages], empty[stages];
};

// The KV blocks that a block goes through, a stage at a time.
struct Stages {
  int first_block, end_block;
  int count() const { return (end_block - first_block + stage_blocks - 1) / stage_blocks; }
  int block(int stage) const { return first_block + stage * stage_blocks; }
};

template <class S> inline void produce(const Call& call, const Sequence& of, int kv_head, const Stages& work) {
  auto& s = shared<Shared<S>>();
  for (int i = 0; i < work.count(); ++i) {
    const int slot = i % stages;
    if (i >= stages) wait(s.empty[slot], (i / stages - 1) % 2);
    arrive_expecting(s.full[slot], stage_blocks * Layout<S>::head_bytes);
    for (int b = 0; b < stage_blocks; ++b) {
      const int block = min(work.block(i) + b, work.end_block - 1);  // the last one again, unseen, where there is no other
      bulk_copy(s.heads[slot][b], head_of<S>(call, of.blocks[block], kv_head), Layout<S>::head_bytes, s.full[slot]);
    }
  }
}

// Sixteen rows of a warp in its warpgroup's sixty-four.
template <class S> struct Rows {
  // Columns of outputs in one product; of a single part ptxas would not let products overlap.
  static constexpr int steps = S::head_dim / 16, part = S::head_dim == 128 ? 64 : 32, parts = S::head_dim / part;

  uint32_t queries[steps][4];
  int positions[2];
  float outputs[parts][part / 2];
  float maxima[2], sums[2];  // of exponents to the base of 2; sums are this thread's share

  // row: of the tile, 0 .. count - 1, this warp's first.
  void begin(const Call& call, const Sequence& of, int kv_head, int first_row, int count) {
    constexpr int group = Layout<S>::group;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int in_warp = lane() / 4 + 8 * i, row = first_row + in_warp, token = of.first + row / group;
      const bool there = in_warp < count;
      const auto* from = there ? reinterpret_cast<const uint32_t*>(query<S>(call, token, kv_head * group + row % group)) : nullptr;
      positions[i] = there ? call.batch->positions[token] : -1;
      maxima[i] = -infinity();
      sums[i] = 0;
#pragma unroll
      for (int k = 0; k < steps; ++k)
#pragma unroll
        for (int half = 0; half < 2; ++half) queries[k][i + 2 * half] = there ? from[8 * k + 4 * half + lane() % 4] : 0;
    }
#pragma unroll
    for (int i = 0; i < parts * part / 2; ++i) outputs[i / (part / 2)][i % (part / 2)] = 0;
  }

  void multiply_keys(const std::byte (&heads)[stage_blocks][Layout<S>::head_bytes], float (&scores)[stage_blocks][16]) {
    begin_products(scores);
#pragma unroll
    for (int b = 0; b < stage_blocks; ++b)
#pragma unroll
      for (int k = 0; k < steps; ++k)
        multiply<32>(scores[b], queries[k], shared_matrix<128>(heads[b] + k / 4 * block_tokens * 128 + k % 4 * 32), k > 0);
    commit_products();
  }

  void multiply_values(const std::byte (&heads)[stage_blocks][Layout<S>::head_bytes], uint32_t (&weights)[stage_blocks][2][4]) {
    begin_products(outputs, weights);
#pragma unroll
    for (int b = 0; b < stage_blocks; ++b)
#pragma unroll
      for (int k = 0; k < 2; ++k)
#pragma unroll
        for (int p = 0; p < parts; ++p)
          multiply<part>(outputs[p], weights[b][k], shared_matrix<64>(heads[b] + Layout<S>::key_bytes + p * part * 64 + k * 32), true);
    commit_products();
  }

  // Scores of blocks from position `first` on -> powers of two of them less the maximum so far. decays: what sums and outputs from before are
  // to be multiplied by. visible: every row sees all of the tokens.
  void weigh(float (&scores)[stage_blocks][16], int first, bool visible, uint32_t (&weights)[stage_blocks][2][4], float (&decays)[2]) {
    const int q = lane() % 4;
#pragma unroll
    for (int at = 0; at < 16 * stage_blocks; ++at) {
      float& score = scores[at / 16][at % 16];
      if constexpr (S::softcap > 0) score = S::softcap * log2_e * tanhf(score);
      const int token = first + at / 16 * block_tokens + at % 16 / 4 * 8 + 2 * q + at % 2, distance = positions[at / 2 % 2] - token;
      if (!visible && (distance < 0 || (S::window > 0 && distance >= S::window))) score = -infinity();
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      float largest = maxima[i];
#pragma unroll
      for (int at = 0; at < 16 * stage_blocks; ++at)
        if (at / 2 % 2 == i) largest = max(largest, scores[at / 16][at % 16]);
      largest = quad_max(largest);
      const float from = largest == -infinity() ? 0 : largest;  // a row that has seen nothing: powers of -inf are 0
      decays[i] = exp2_approximate(maxima[i] - from);
      maxima[i] = largest;
      sums[i] *= decays[i];
#pragma unroll
      for (int at = 0; at < 16 * stage_blocks; ++at)
        if (at / 2 % 2 == i) {
          float& score = scores[at / 16][at % 16];
          score = exp2_approximate(score - from);
          sums[i] += score;
        }
    }
    // Of sixteen tokens the thread has pairs 2q and 8 + 2q: sums of products are laid out as operands are.
#pragma unroll
    for (int at = 0; at < 16 * stage_blocks; at += 2) weights[at / 16][at / 8 % 2][at / 2 % 4] = pack_bf16(scores[at / 16][at % 16], scores[at / 16][at % 16 + 1]);
  }

  void decay(const float (&by)[2]) {
#pragma unroll
    for (int i = 0; i < parts * part / 2; ++i) outputs[i / (part / 2)][i % (part / 2)] *= by[i / 2 % 2];
  }
};

template <class S> inline void consume(const Call& call, const RowTile& tile, int kv_head, const Stages& work) {
  constexpr int group = Layout<S>::group;
  const Sequence& of = tile.of;
  const int warp = static_cast<int>(threadIdx.x) / 32, first_row = warp * tile_rows, own = max(0, min(tile_rows, tile.count - first_row));
  const auto position = [&](int row) { return of.length - of.count + (tile.first_row + row) / group; };
  const int from = position(first_row), to = position(first_row + own - 1);
  auto& s = shared<Shared<S>>();
  Rows<S> rows;
  rows.begin(call, of, kv_head, tile.first_row + first_row, own);

  float scores[stage_blocks][16], decays[2];
  uint32_t weights[stage_blocks][2][4], next[stage_blocks][2][4];
  const auto weigh = [&](int stage, uint32_t (&to_weights)[stage_blocks][2][4]) {
    const int first = work.block(stage) * block_tokens, end = first + stage_blocks * block_tokens;
    rows.weigh(scores, first, own == tile_rows && end <= from + 1 && first >= first_visible<S>(to), to_weights, decays);
  };
  wait(s.full[0], 0);
  rows.multiply_keys(s.heads[0], scores);
  wait_for_products<0>(scores);
  weigh(0, weights);
  const int last = work.count() - 1;
#pragma unroll 1
  for (int i = 0; i < last; ++i) {
    const int slot = (i + 1) % stages;
    wait(s.full[slot], (i + 1) / stages % 2);
    rows.multiply_keys(s.heads[slot], scores);
    rows.multiply_values(s.heads[i % stages], weights);
    wait_for_products<1>(scores);
    weigh(i + 1, next);
    wait_for_products<0>(rows.outputs, weights);
    if (lane() == 0) arrive(s.empty[i % stages]);
    rows.decay(decays);
#pragma unroll
    for (int j = 0; j < stage_blocks * 8; ++j) weights[j / 8][j / 4 % 2][j % 4] = next[j / 8][j / 4 % 2][j % 4];
  }
  rows.multiply_values(s.heads[last % stages], weights);
  wait_for_products<0>(rows.outputs, weights);

  const int g = lane() / 4, q = lane() % 4;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const float sum = quad_sum(rows.sums[i]);
    const int in_warp = g + 8 * i, row = tile.first_row + first_row + in_warp, query_head = kv_head * group + row % group;
    if (in_warp >= own) continue;
    const float inverse = 1 / with_sink(Weights<S>(call), query_head, rows.maxima[i], sum);
    auto* out = call.outputs[0].row<typename S::Out>(of.first + row / group) + query_head * S::head_dim;
#pragma unroll
    for (int n = 0; n < S::head_dim / 8; ++n)
#pragma unroll
      for (int j = 0; j < 2; ++j) store(out + 8 * n + 2 * q + j, rows.outputs[n * 8 / Rows<S>::part][n * 8 % Rows<S>::part / 2 + 2 * i + j] * inverse);
  }
}

// Blocks along x are row tiles, the last first, which has most to do; along y KV heads.
template <class S> inline void prefill(const Call& call) {
  const int kv_head = static_cast<int>(blockIdx.y);
  const RowTile tile = row_tile<S, consumers * rows_each>(*call.batch, static_cast<int>(gridDim.x - 1 - blockIdx.x));
  if (!tile.count) return;
  const Sequence& of = tile.of;
  const auto position = [&](int row) { return of.length - of.count + (tile.first_row + row) / Layout<S>::group; };
  const Stages work{first_visible<S>(position(0)) / block_tokens, position(tile.count - 1) / block_tokens + 1};
  auto& s = shared<Shared<S>>();
  if (threadIdx.x == 0) {
    for (int i = 0; i < stages; ++i) begin(s.full[i], 1), begin(s.empty[i], consumer_threads / 32);
    publish_barriers();
  }
  __syncthreads();
  if (threadIdx.x < consumer_threads) {
    take_registers<consumer_registers>();
    consume<S>(call, tile, kv_head, work);
  } else {
    give_registers<producer_registers>();
    if (threadIdx.x == consumer_threads) produce<S>(call, of, kv_head, work);
  }
}

}  // namespace slipway::cuda::paged_attention::warpgroup
