// Only the rows whose logits are wanted.
#pragma once
#include "slipway/cuda/device.cuh"

namespace slipway::cuda {

// A block has one row.
template <class In, class Out, int columns> inline void gather_rows(const Call& call) {
  const int row = static_cast<int>(blockIdx.x);
  if (row >= call.rows()) return;
  const In* from = call.inputs[0].row<In>(call.batch->logit_rows[row]);
  Out* to = call.outputs[0].row<Out>(row);
  for (int column = static_cast<int>(threadIdx.x); column < columns; column += static_cast<int>(blockDim.x)) store(to + column, to_float(from[column]));
}

}  // namespace slipway::cuda
