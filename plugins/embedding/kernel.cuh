// One table row for each token.
#pragma once
#include "slipway/cuda/device.cuh"

namespace slipway::cuda {

// A block has one row.
template <class Out, int columns> inline void embedding(const Call& call) {
  const int row = static_cast<int>(blockIdx.x);
  if (row >= call.rows()) return;
  const int stated = call.batch->token_ids[row];
  const int id = stated >= 0 ? stated : max(*call.batch->drawn.row<int32_t>(~stated), 0);  // where none was drawn, nobody looks at this row
  const bf16* from = reinterpret_cast<const bf16*>(call.weights[0]) + int64_t{id} * columns;
  Out* to = call.outputs[0].row<Out>(row);
  for (int column = static_cast<int>(threadIdx.x); column < columns; column += static_cast<int>(blockDim.x)) store(to + column, to_float(from[column]));
}

}  // namespace slipway::cuda
