// More rows than few_rows takes: a block has 128 packed outputs and 64 rows, or some of the inputs of those, where blocks are few.
//
// Each of four warps has two tiles of weights, which it reads and decodes by itself, straight from global memory into registers, one
// chunk ahead; the activations of a chunk go through shared memory, `stages` of them under way, for all warps.
#pragma once
#include "linear/cuda/problem.cuh"

namespace slipway::cuda::linear {

inline constexpr int many_warps = 4, many_threads = 32 * many_warps, block_rows = 64, stages = 3;

template <class P> struct ManyRows {
  static constexpr int pairs = 2, block_tiles = many_warps * pairs, block_outputs = block_tiles * tile_rows / (P::gated ? 2 : 1);
  static constexpr int row_floats = block_outputs + 4;  // rows of results begin in different banks
  static constexpr int groups = block_rows / 8, sums = pairs * groups * 4;  // of a thread
  struct Shared {
    union {
      bf16 x[stages][block_rows][chunk_columns];  // its pieces of eight swapped by `piece`
      float results[block_rows][row_floats];
    };
    uint32_t arrival;  // of this block among those that share outputs and rows
  };
};

// Where the eighth `i` of a row of activations lies: the four pieces of two neighbouring rows that are read at once are in different banks.
inline int piece(int row, int i) { return i ^ ((row & 1) << 2 | (row >> 1 & 3)); }

template <class P> inline void stage_inputs(const Call& call, int first_row, int chunk, bf16 (&to)[block_rows][chunk_columns]) {
  const int rows = call.rows();
#pragma unroll
  for (int i = static_cast<int>(threadIdx.x); i < block_rows * 8; i += many_threads) {
    const int row = i / 8, column = chunk * chunk_columns + i % 8 * 8;
    const bool there = first_row + row < rows && column < P::inputs;
    const auto* from = call.inputs[0].row<const typename P::In>(there ? first_row + row : 0);
    bf16* at = to[row] + 8 * piece(row, i % 8);
    if constexpr (is_same<typename P::In, bf16> && P::inputs % 8 == 0)
      copy_async_16(at, from + (there ? column : 0), there);
    else
      *reinterpret_cast<Words<4>*>(at) = there ? load_inputs<P>(from, column) : Words<4>{{0, 0, 0, 0}};
  }
}

// Residuals are loaded some at a time: the compiler moves no load above a store that might be to the same place.
template <class P> inline void store_with_residual(const Call& call, int first_row, int first_output, const float (&results)[block_rows][ManyRows<P>::row_floats]) {
  constexpr int fours = ManyRows<P>::block_outputs / 4, at_once = 8;
  const int rows = call.rows();
  for (int first = static_cast<int>(threadIdx.x); first < block_rows * fours; first += many_threads * at_once) {
    Words<4> residuals[at_once];
    const auto each = [&](auto body) {
#pragma unroll
      for (int i = 0; i < at_once; ++i) {
        const int at = first + i * many_threads, row = at / fours, output = at % fours * 4;
        if (first_row + row < rows && first_output + output < P::outputs) body(residuals[i], row, output);
      }
    };
    each([&](Words<4>& residual, int row, int output) {
      const float* from = call.inputs[1].row<const float>(first_row + row) + first_output + output;
      check_alignment(from, 16);
      residual = *reinterpret_cast<const Words<4>*>(from);
    });
    each([&](const Words<4>& residual, int row, int output) {
      auto* to = call.outputs[0].row<typename P::Out>(first_row + row) + first_output + output;
#pragma unroll
      for (int two = 0; two < 4; two += 2)
        store_two(to + two, {results[row][output + two] + as_float(residual.words[two]), results[row][output + two + 1] + as_float(residual.words[two + 1])});
    });
  }
}

// Blocks along x have other rows, along y other outputs, along z others of the inputs (of one block of rows alone).
// scratch: float [splits][blocks along y][sums][threads]; counters: [blocks along y].
template <class P, int splits> inline void many_rows(const Call& call) {
  using K = ManyRows<P>;
  constexpr int groups = K::groups, share = (P::chunks + splits - 1) / splits;
  const int rows = call.rows(), first_row = static_cast<int>(blockIdx.x) * block_rows, warp = static_cast<int>(threadIdx.x) / 32;
  if (first_row >= rows) return;
  const int begin = splits > 1 ? static_cast<int>(blockIdx.z) * share : 0, end = splits > 1 ? min(begin + share, P::chunks) : P::chunks;
  const int g = lane() / 4, q = lane() % 4, first_tile = static_cast<int>(blockIdx.y) * K::block_tiles + warp * K::pairs;
  const typename P::Weights weights(call.weights[0]);
  auto& s = shared<typename K::Shared>();
  using Raw = typename P::Weights::Raw;
  const auto load = [&](int chunk, Raw (&raw)[K::pairs]) {
#pragma unroll
    for (int p = 0; p < K::pairs; ++p) raw[p] = weights.load(min(first_tile + p, P::tiles - 1), chunk);
  };

#pragma unroll
  for (int i = 0; i < stages - 1; ++i) {
    if (begin + i < end) stage_inputs<P>(call, first_row, begin + i, s.x[i]);
    commit_copies();
  }
  float sums[K::pairs][groups][4] = {};
  Units<typename P::Weights, K::pairs> units;
  Raw raw[K::pairs], next[K::pairs];
  if (begin < end) load(begin, raw);
  for (int chunk = begin; chunk < end; ++chunk) {
    wait_for_copies<stages - 2>();
    __syncthreads();
    if (const int coming = chunk + stages - 1; coming < end) stage_inputs<P>(call, first_row, coming, s.x[(coming - begin) % stages]);
    commit_copies();
    if (chunk + 1 < end) load(chunk + 1, next);
    const auto& x = s.x[(chunk - begin) % stages];
    multiply_chunk<P, K::pairs, groups>(raw, units, sums, [&](int half, int c) {
      const int row = 8 * c + g;
      return *reinterpret_cast<const Words<4>*>(x[row] + 8 * piece(row, 4 * half + q));
    });
#pragma unroll
    for (int p = 0; p < K::pairs; ++p) raw[p] = next[p];
  }
  units.count(sums);

  if constexpr (splits > 1) {
    float* planes = reinterpret_cast<float*>(call.scratch) + int64_t{blockIdx.y} * K::sums * many_threads + threadIdx.x;
    const auto at = [&](int of, int i) -> float& { return planes[(int64_t{of} * gridDim.y * K::sums + i) * many_threads]; };
#pragma unroll
    for (int i = 0; i < K::sums; ++i) at(static_cast<int>(blockIdx.z), i) = sums[i / (4 * groups)][i / 4 % groups][i % 4];
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) s.arrival = increment_wrapping(call.counters + blockIdx.y, splits - 1);
    __syncthreads();
    if (s.arrival != splits - 1) return;
    __threadfence();
#pragma unroll
    for (int i = 0; i < K::sums; ++i) sums[i / (4 * groups)][i / 4 % groups][i % 4] = at(0, i);
#pragma unroll 1
    for (int of = 1; of < splits; ++of)
#pragma unroll
      for (int i = 0; i < K::sums; ++i) sums[i / (4 * groups)][i / 4 % groups][i % 4] += at(of, i);
  }

  __syncthreads();  // the results take the place of the activations
#pragma unroll
  for (int i = 0; i < groups * 4; ++i) {
    const int c = i / 4, j = i % 4, row = 8 * c + 2 * q + j % 2, in_tile = g + j / 2 * 8;
    const auto value = [&](int p) { return first_tile + p < P::tiles ? finished<P>(call, sums[p][c][j], first_tile + p, in_tile) : 0; };
    if constexpr (P::gated) {
      s.results[row][warp * tile_rows + in_tile] = typename P::Activation()(value(0)) * value(1);
    } else {
#pragma unroll
      for (int p = 0; p < K::pairs; ++p) s.results[row][(warp * K::pairs + p) * tile_rows + in_tile] = value(p);
    }
  }
  __syncthreads();
  const int first_output = static_cast<int>(blockIdx.y) * K::block_outputs;
  if constexpr (P::adds && P::outputs % 4 == 0 && P::Weights::fold != 32) {  // int4 in groups of 32 would spill registers
    store_with_residual<P>(call, first_row, first_output, s.results);
    return;
  }
  for (int i = static_cast<int>(threadIdx.x); i < block_rows * K::block_outputs; i += many_threads) {
    const int row = i / K::block_outputs, output = i % K::block_outputs;
    if (first_row + row < rows && first_output + output < P::outputs) {
      const float value = with_residual<P>(call, s.results[row][output], first_row + row, first_output + output);
      store(call.outputs[0].row<typename P::Out>(first_row + row) + first_output + output, value);
    }
  }
}

}  // namespace slipway::cuda::linear
