// Columns in another order.
#pragma once
#include "slipway/cuda/device.cuh"

namespace slipway::cuda {

// A block has one row.
template <class In, class Out, int columns> inline void gather_columns(const Call& call) {
  const int row = static_cast<int>(blockIdx.x);
  if (row >= call.rows()) return;
  const int32_t* order = reinterpret_cast<const int32_t*>(call.weights[0]);
  const In* from = call.inputs[0].row<In>(row);
  Out* to = call.outputs[0].row<Out>(row);
  for (int column = static_cast<int>(threadIdx.x); column < columns; column += static_cast<int>(blockDim.x)) store(to + column, to_float(from[order[column]]));
}

}  // namespace slipway::cuda
