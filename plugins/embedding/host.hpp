// One bfloat16 table row for each token. Ids are in range.
#pragma once
#include "slipway/abi.hpp"
#include "slipway/simd.hpp"

namespace slipway {

template <class Out, int columns>
void embedding(const Call& call) {
  const bf16* table = reinterpret_cast<const bf16*>(call.weights[0]);
  const Range rows = call.share(call.rows);
  for (int64_t r = rows.begin; r < rows.end; ++r) {
    const bf16* in = table + int64_t{call.batch->token_ids[r]} * columns;
    Out* out = call.outputs[0].row<Out>(r);
    for_columns<columns>([&](int c, int used) { store(out + c, load(in + c, used), used); });
  }
}

}  // namespace slipway
