// act(gate) * up, for a merged gate|up linear.
#pragma once
#include "slipway/cuda/activations.cuh"

namespace slipway::cuda {

// Blocks along x have other rows, along y other columns.
template <class Activation, class In, class Out, int columns> inline void gated_activation(const Call& call) {
  const int column = static_cast<int>(blockIdx.y * blockDim.x + threadIdx.x), row = static_cast<int>(blockIdx.x);
  if (row >= call.rows() || column >= columns) return;
  const In* x = call.inputs[0].row<In>(row);
  store(call.outputs[0].row<Out>(row) + column, Activation()(to_float(x[column])) * to_float(x[columns + column]));
}

}  // namespace slipway::cuda
