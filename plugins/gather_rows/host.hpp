// The token rows whose logits are wanted.
#pragma once
#include "slipway/abi.hpp"
#include "slipway/simd.hpp"

namespace slipway {

template <class In, class Out, int columns>
void gather_rows(const Call& call) {
  const Range rows = call.share(call.rows);
  for (int64_t r = rows.begin; r < rows.end; ++r) {
    const In* in = call.inputs[0].row<In>(call.batch->logit_rows[r]);
    Out* out = call.outputs[0].row<Out>(r);
    for_columns<columns>([&](int c, int used) { store(out + c, load(in + c, used), used); });
  }
}

}  // namespace slipway
