// One linear: its shapes, how activations are read, and what becomes of a sum.
#pragma once
#include "linear/cuda/weights.cuh"
#include "slipway/cuda/activations.cuh"

namespace slipway::cuda::linear {

struct None {};

// y[N] = x[K] W[N, K]^T + bias, and plus the call's second input, float32, if it adds; gated: act(x gate^T) * (x up^T), where tiles of `gate` and `up` take turns in the packed weights.
template <template <int, int> class WeightsOf, int outputs_, int inputs_, class In_, class Out_, class Activation_, bool biased_, bool adds_> struct Problem {
  using In = In_;
  using Out = Out_;
  using Activation = Activation_;
  static constexpr int outputs = outputs_, inputs = inputs_, chunks = chunks_of(inputs_);
  static constexpr bool gated = !is_same<Activation, None>, biased = biased_, adds = adds_;
  static constexpr int tiles = (outputs + tile_rows - 1) / tile_rows * (gated ? 2 : 1);  // of packed weights
  using Weights = WeightsOf<tiles, inputs>;
};

// Eight activations from `column` on, zeros beyond the inputs.
template <class P> inline Words<4> load_inputs(const typename P::In* row, int column) {
  if constexpr (P::inputs % 8 == 0) {
    if (column < P::inputs) return load_eight(row + column);
    return {{0, 0, 0, 0}};
  } else {
    const auto one = [&](int c) { return c < P::inputs ? to_float(row[c]) : 0.0f; };
    Words<4> result;
#pragma unroll
    for (int i = 0; i < 4; ++i) result.words[i] = pack_bf16(one(column + 2 * i), one(column + 2 * i + 1));
    return result;
  }
}

// What a sum becomes: times its output's scale, plus its bias.
template <class P> inline float finished(const Call& call, float sum, int tile, int row) {
  if (const float* scales = typename P::Weights(call.weights[0]).scales()) sum *= scales[tile * tile_rows + row];
  if constexpr (P::biased) sum += reinterpret_cast<const float*>(call.weights[1])[tile * tile_rows + row];
  return sum;
}

// What is stored of an output, where residuals are not loaded ahead.
template <class P> inline float with_residual(const Call& call, float value, int row, int output) {
  if constexpr (P::adds) value += call.inputs[1].row<const float>(row)[output];
  return value;
}

// What the sums of a warp's tiles are counted in, for formats that say.
template <class W, int pairs> struct Units {
  static constexpr bool there = requires(const typename W::Raw& raw) { W::unit(raw); };
  float units[pairs];

  Units() {
#pragma unroll
    for (int p = 0; p < pairs; ++p) units[p] = 1;
  }

  // From here on in those of `raw`.
  template <int columns> void change(const typename W::Raw (&raw)[pairs], float (&sums)[pairs][columns][4]) {
    if constexpr (there)
#pragma unroll
      for (int p = 0; p < pairs; ++p)
        if (const float unit = W::unit(raw[p]); unit != units[p]) {
          scale(sums[p], divide_approximate(units[p], unit));
          units[p] = unit;
        }
  }
  template <int columns> void count(float (&sums)[pairs][columns][4]) const {
    if constexpr (there)
#pragma unroll
      for (int p = 0; p < pairs; ++p) scale(sums[p], units[p]);
  }

 private:
  template <int columns> static void scale(float (&sums)[columns][4], float by) {
#pragma unroll
    for (int i = 0; i < 4 * columns; ++i) sums[i / 4][i % 4] *= by;
  }
};

// Sums of one chunk: of `pairs` tiles of weights with `columns` groups of eight rows of activations, added to `sums`.
// inputs_of(half, group): the eight activations of this thread.
template <class P, int pairs, int columns, class InputsOf>
inline void multiply_chunk(const typename P::Weights::Raw (&raw)[pairs], Units<typename P::Weights, pairs>& units, float (&sums)[pairs][columns][4],
                           InputsOf inputs_of) {
  using W = typename P::Weights;
  units.change(raw, sums);
  constexpr int halves = W::fold == chunk_columns ? 2 : 1, each = 2 * halves;  // multiplications between two folds
#pragma unroll
  for (int first = 0; first < 2; first += halves) {
    uint32_t a[pairs][each][4];
#pragma unroll
    for (int i = 0; i < pairs * each; ++i) W::decode(raw[i / each], 2 * first + i % each, a[i / each][i % each]);
#pragma unroll
    for (int c = 0; c < columns; ++c) {
      float inner[pairs][4] = {};
#pragma unroll
      for (int half = 0; half < halves; ++half) {
        const Words<4> x = inputs_of(first + half, c);
#pragma unroll
        for (int i = 0; i < 2 * pairs; ++i) {
          const uint32_t b[2] = {x.words[i % 2 * 2], x.words[i % 2 * 2 + 1]};
          mma_bf16(W::fold ? inner[i / 2] : sums[i / 2][c], a[i / 2][2 * half + i % 2], b);
        }
      }
      if constexpr (W::fold != 0)
#pragma unroll
        for (int i = 0; i < pairs * 4; ++i) sums[i / 4][c][i % 4] += W::fold_by(raw[i / 4], W::fold == 32 ? first : 0, i % 4 / 2) * inner[i / 4][i % 4];
    }
  }
}

}  // namespace slipway::cuda::linear
