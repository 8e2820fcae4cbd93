// Many rows from sm90a on: a block has 256 packed outputs and 128 rows. Two warpgroups have 128 of the outputs each, which they read and
// decode by themselves, straight from global memory into the registers that wgmma multiplies from, one chunk ahead; a third brings the
// activations of a chunk into shared memory, `stages` of them under way, in the order of columns that the weights have.
#pragma once
#include "linear/cuda/problem.cuh"
#include "slipway/cuda/warpgroup.cuh"

namespace slipway::cuda::linear::warpgroup {

inline constexpr int consumers = 2, consumer_threads = 128 * consumers, producer_threads = 128, threads = consumer_threads + producer_threads;
inline constexpr int consumer_registers = 200, producer_registers = 104;
static_assert(shares_fit(threads, consumers * 128 * consumer_registers + producer_threads * producer_registers));
inline constexpr int block_rows = 128, stages = 4, row_bytes = 128;
inline constexpr int pairs = 2, block_tiles = consumers * 4 * pairs;  // tiles of a warp, of a block

struct Shared {
  alignas(1024) std::byte x[stages][block_rows][row_bytes];
  Barrier full[stages], empty[stages];
};

// Thread (g, q) of a warp brings inputs 32 h + 8 q + 0..7 of row g of eight. Their pairs v = 0..3 are columns 2q and 2q + 1 of the 16-byte
// piece 4 h + v of the row: multiplication m of the chunk has pieces 2m and 2m + 1 (weights.cuh).
template <class P> inline void produce(const Call& call, int first_row) {
  constexpr int each = block_rows * 8 / producer_threads;
  const int warp = (static_cast<int>(threadIdx.x) - consumer_threads) / 32, g = lane() / 4, q = lane() % 4, rows = call.rows();
  const auto row_of = [&](int i) { return (i * 4 + warp) / 2 * 8 + g; };
  const int half = warp % 2;
  const auto* x = call.inputs[0].row<const typename P::In>(first_row + row_of(0));
  const int apart = static_cast<int>(call.inputs[0].row_bytes / static_cast<int64_t>(sizeof *x)) * (row_of(1) - row_of(0));
  auto& s = shared<Shared>();
  Words<4> eights[each];
  const auto load_one = [&](int i, int column) {
    if (first_row + row_of(i) >= rows) return Words<4>{{0, 0, 0, 0}};
    if constexpr (P::inputs % chunk_columns == 0) return load_eight(x + i * apart + column);  // registers have no room for more questions
    return load_inputs<P>(x + i * apart, column);
  };
  const auto load = [&](int chunk) {
#pragma unroll
    for (int i = 0; i < each; ++i) eights[i] = load_one(i, chunk * chunk_columns + 32 * half + 8 * q);
  };
  load(0);
#pragma unroll 1
  for (int chunk = 0; chunk < P::chunks; ++chunk) {
    const int slot = chunk % stages;
    if (chunk >= stages) wait(s.empty[slot], (chunk / stages - 1) % 2);
#pragma unroll
    for (int i = 0; i < each; ++i)
#pragma unroll
      for (int v = 0; v < 4; ++v) {
        const int row = row_of(i);
        *reinterpret_cast<uint32_t*>(s.x[slot][row] + ((4 * half + v) ^ row % 8) * 16 + 4 * q) = eights[i].words[v];
      }
    publish_to_products();
    arrive(s.full[slot]);
    if (chunk + 1 < P::chunks) load(chunk + 1);
  }
}

// Sums of the outputs that a thread has rows of, g and g + 8 of each tile, counted in units that change with the inputs: scales of blocks,
// multipliers of groups. Registers do not hold sums of a group beside those of all.
template <class W> struct OutputUnits {
  static constexpr bool of_groups = W::fold != 0, there = of_groups || Units<W, pairs>::there;
  static constexpr int each = of_groups ? 2 : 1;  // of a tile: for outputs g and for g + 8, or for both
  float units[pairs][each];

  OutputUnits() {
#pragma unroll
    for (int i = 0; i < pairs * each; ++i) units[i / each][i % each] = 1;
  }

  // From here on in those of `raw`, of an int4 group the `which`-th of the chunk.
  void change(const typename W::Raw (&raw)[pairs], int which, float (&sums)[pairs][block_rows / 2]) {
    if constexpr (there)
#pragma unroll
      for (int p = 0; p < pairs; ++p)
#pragma unroll
        for (int i = 0; i < each; ++i) {
          const float found = unit(raw[p], which, i), now = found != 0 ? found : units[p][i];  // 0: of zeros alone
          if (__ballot_sync(~0u, now != units[p][i])) scale(sums[p], i, divide_approximate(units[p][i], now));
          units[p][i] = now;
        }
  }
  void count(float (&sums)[pairs][block_rows / 2]) const {
    if constexpr (there)
#pragma unroll
      for (int i = 0; i < pairs * each; ++i) scale(sums[i / each], i % each, units[i / each][i % each]);
  }

 private:
  static float unit(const typename W::Raw& raw, int which, int second) {
    if constexpr (of_groups)
      return W::fold_by(raw, which, second);
    else
      return W::unit(raw);
  }
  static void scale(float (&sums)[block_rows / 2], int second, float by) {
#pragma unroll
    for (int i = 0; i < block_rows / 2; ++i)
      if (each == 1 || i / 2 % 2 == second) sums[i] *= by;
  }
};

// Of the outputs g and g + 8 of a tile that a lane has, two neighbours, the others being those of the lane beside it: a warp's
// stores then fill whole sectors.
struct Neighbours {
  float values[2];

  static int first() { return lane() / 4 % 2 ? lane() / 4 + 7 : lane() / 4; }  // in the tile

  explicit Neighbours(const float (&own)[2]) {
    const bool odd = lane() / 4 % 2 != 0;
    const float other = __shfl_xor_sync(~0u, odd ? own[0] : own[1], 4);
    values[0] = odd ? other : own[0];
    values[1] = odd ? own[1] : other;
  }

  template <int outputs, class Out> void store_to(Out* row, int output) const {
    if constexpr (outputs % 2 == 0) {
      if (output < outputs) store_two(row + output, values);
    } else {
#pragma unroll
      for (int i = 0; i < 2; ++i)
        if (output + i < outputs) store(row + output + i, values[i]);
    }
  }
};

template <class P> inline void consume(const Call& call, int first_row) {
  using W = typename P::Weights;
  constexpr int portions = W::fold && W::fold < chunk_columns ? chunk_columns / W::fold : 1, each = 4 / portions;  // multiplications between two changes of units
  const int warp = static_cast<int>(threadIdx.x) / 32, g = lane() / 4, q = lane() % 4, rows = call.rows();
  const int first_tile = static_cast<int>(blockIdx.y) * block_tiles + warp * pairs;
  const W weights(call.weights[0]);
  auto& s = shared<Shared>();
  const auto load = [&](int chunk, typename W::Raw (&raw)[pairs]) {
#pragma unroll
    for (int p = 0; p < pairs; ++p) raw[p] = weights.load(min(first_tile + p, P::tiles - 1), chunk);
  };

  float sums[pairs][block_rows / 2];
#pragma unroll
  for (int i = 0; i < pairs * block_rows / 2; ++i) sums[i / (block_rows / 2)][i % (block_rows / 2)] = 0;
  OutputUnits<W> units;
  typename W::Raw raw[pairs], next[pairs];
  load(0, raw);
#pragma unroll 1
  for (int chunk = 0; chunk < P::chunks; ++chunk) {
    const int slot = chunk % stages;
    if (chunk + 1 < P::chunks) load(chunk + 1, next);
    wait(s.full[slot], chunk / stages % 2);
#pragma unroll
    for (int portion = 0; portion < portions; ++portion) {
      units.change(raw, portion, sums);
      uint32_t a[pairs][each][4];
#pragma unroll
      for (int i = 0; i < pairs * each; ++i) W::decode(raw[i / each], portion * each + i % each, a[i / each][i % each]);
      begin_products(sums, a);
#pragma unroll
      for (int i = 0; i < pairs * each; ++i)
        multiply<block_rows>(sums[i % pairs], a[i % pairs][i / pairs], shared_matrix<row_bytes>(s.x[slot][0] + (portion * each + i / pairs) * 32), true);
      commit_products();
      wait_for_products<0>(sums);
    }
    if (lane() == 0) arrive(s.empty[slot]);
#pragma unroll
    for (int p = 0; p < pairs; ++p) raw[p] = next[p];
  }
  units.count(sums);

  if (first_tile >= P::tiles) return;
  const auto row_of = [&](int i) { return first_row + i / 2 * 8 + 2 * q + i % 2; };
  constexpr int at_once = P::adds ? 4 : 1;  // residuals of so many rows are loaded before any is stored
  [[maybe_unused]] float residuals[at_once][pairs][2] = {};
#pragma unroll
  for (int i = 0; i < block_rows / 4; ++i) {
    if constexpr (P::adds)
      if (i % at_once == 0)
#pragma unroll
        for (int j = 0; j < at_once * pairs * 2; ++j) {
          const int row = row_of(i + j / (2 * pairs)), output = (first_tile + j / 2 % pairs) * tile_rows + Neighbours::first() + j % 2;
          if (row < rows && output < P::outputs) residuals[j / (2 * pairs)][j / 2 % pairs][j % 2] = call.inputs[1].row<const float>(row)[output];
        }
    const int at = i / 2 * 4 + i % 2, row = row_of(i);  // of the sums, those of g and, two on, of g + 8
    const auto value = [&](int p, int second) { return finished<P>(call, sums[p][at + 2 * second], first_tile + p, g + 8 * second); };
    const auto write = [&](int p, const float (&values)[2]) {
      Neighbours two(values);
      if constexpr (P::adds)
#pragma unroll
        for (int second = 0; second < 2; ++second) two.values[second] += residuals[i % at_once][p][second];
      const int output = (P::gated ? first_tile / 2 : first_tile + p) * tile_rows + Neighbours::first();
      if (row < rows) two.template store_to<P::outputs>(call.outputs[0].row<typename P::Out>(row), output);
    };
    if constexpr (P::gated) {
      const typename P::Activation activation;
      write(0, {activation(value(0, 0)) * value(1, 0), activation(value(0, 1)) * value(1, 1)});
    } else {
#pragma unroll
      for (int p = 0; p < pairs; ++p)
        if (first_tile + p < P::tiles) write(p, {value(p, 0), value(p, 1)});
    }
  }
}

// Blocks along x have other rows, along y other outputs.
template <class P> inline void many_rows(const Call& call) {
  const int first_row = static_cast<int>(blockIdx.x) * block_rows;
  if (first_row >= call.rows()) return;
  auto& s = shared<Shared>();
  if (threadIdx.x == 0) {
    for (int i = 0; i < stages; ++i) begin(s.full[i], producer_threads), begin(s.empty[i], consumer_threads / 32);
    publish_barriers();
  }
  __syncthreads();
  if (threadIdx.x < consumer_threads) {
    take_registers<consumer_registers>();
    consume<P>(call, first_row);
  } else {
    give_registers<producer_registers>();
    produce<P>(call, first_row);
  }
}

}  // namespace slipway::cuda::linear::warpgroup
