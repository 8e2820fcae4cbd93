// At most 16 rows: weights are streamed once, and nothing else takes time.
//
// A block has one tile of outputs (gated: a tile of `gate` and one of `up`); its eight warps take turns at the chunks of the inputs,
// each with `ahead` chunks under way, the first while the kernel before still runs, and their sums meet in shared memory. Where outputs are few, blocks share a tile too: each
// writes its sums and the last of them adds all up, always in the same order.
#pragma once
#include "linear/cuda/problem.cuh"

namespace slipway::cuda::linear {

inline constexpr int few_warps = 8, few_threads = 32 * few_warps;

template <class P, int columns> struct FewRows {
  static constexpr int pairs = P::gated ? 2 : 1, sums = pairs * columns * 128;  // of a block
  struct Shared {
    float partial[few_warps][sums];
    uint32_t arrival;  // of this block among those that share a tile
  };
};

// columns: groups of eight rows. ahead: chunks. splits: blocks along y that share a tile.
// scratch: float [splits][blocks][sums]; counters: [blocks].
template <class P, int columns, int ahead, int splits> inline void few_rows(const Call& call) {
  using K = FewRows<P, columns>;
  constexpr int pairs = K::pairs, share = (P::chunks + splits - 1) / splits;
  const int rows = call.rows(), warp = static_cast<int>(threadIdx.x) / 32, g = lane() / 4, q = lane() % 4;
  const int block = static_cast<int>(blockIdx.x), split = static_cast<int>(blockIdx.y), end = min((split + 1) * share, P::chunks);
  const typename P::Weights weights(call.weights[0]);
  const typename P::In* x[columns];
#pragma unroll
  for (int c = 0; c < columns; ++c) x[c] = 8 * c + g < rows ? call.inputs[0].row<const typename P::In>(8 * c + g) : nullptr;

  float sums[pairs][columns][4] = {};
  Units<typename P::Weights, pairs> units;
  typename P::Weights::Raw raw[ahead][pairs];
  const auto load = [&](int slot, int chunk) {
    if (chunk < end)
#pragma unroll
      for (int p = 0; p < pairs; ++p) raw[slot][p] = weights.load(block * pairs + p, chunk);
  };
  const int first = split * share + warp;
#pragma unroll
  for (int i = 0; i < ahead; ++i) load(i, first + i * few_warps);
  wait_for_previous();
  for (int chunks = first; chunks < end; chunks += few_warps * ahead)
#pragma unroll
    for (int i = 0; i < ahead; ++i)
      if (const int chunk = chunks + i * few_warps; chunk < end) {
        multiply_chunk<P, pairs, columns>(raw[i], units, sums, [&](int half, int c) -> Words<4> {
          if (!x[c]) return {{0, 0, 0, 0}};
          return load_inputs<P>(x[c], chunk * chunk_columns + 32 * half + 8 * q);
        });
        load(i, chunk + few_warps * ahead);
      }

  units.count(sums);
  auto& s = shared<typename K::Shared>();
#pragma unroll
  for (int i = 0; i < pairs * columns; ++i)
#pragma unroll
    for (int j = 0; j < 4; ++j) s.partial[warp][i * 128 + j * 32 + lane()] = sums[i / columns][i % columns][j];
  __syncthreads();
  const auto of_warps = [&](int i) {
    float sum = s.partial[0][i];
#pragma unroll
    for (int w = 1; w < few_warps; ++w) sum += s.partial[w][i];
    return sum;
  };
  float* planes = reinterpret_cast<float*>(call.scratch);
  const auto plane = [&](int of) { return planes + (int64_t{of} * gridDim.x + block) * K::sums; };
  if constexpr (splits > 1) {
    for (int i = static_cast<int>(threadIdx.x); i < K::sums; i += few_threads) plane(split)[i] = of_warps(i);
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) s.arrival = increment_wrapping(call.counters + block, splits - 1);
    __syncthreads();
    if (s.arrival != splits - 1) return;
    __threadfence();
  }
  const auto total = [&](int i) {
    if constexpr (splits == 1) return of_warps(i);
    float sum = plane(0)[i];
    for (int of = 1; of < splits; ++of) sum += plane(of)[i];
    return sum;
  };
  // Sum i is of output g + 8 (j / 2) and row 2q + j % 2 of its group: neighbours in i are neighbours in the outputs but for q.
  for (int i = static_cast<int>(threadIdx.x); i < columns * 128; i += few_threads) {
    const int at = i % 32, j = i / 32 % 4, in_tile = at / 4 + j / 2 * 8, row = i / 128 * 8 + at % 4 * 2 + j % 2, output = block * tile_rows + in_tile;
    if (row >= rows || output >= P::outputs) continue;
    float value = finished<P>(call, total(i), block * pairs, in_tile);
    if constexpr (P::gated) value = typename P::Activation()(value) * finished<P>(call, total(columns * 128 + i), block * pairs + 1, in_tile);
    store(call.outputs[0].row<typename P::Out>(row) + output, with_residual<P>(call, value, row, output));
  }
}

}  // namespace slipway::cuda::linear
