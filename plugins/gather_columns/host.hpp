// Columns in another order.
#pragma once
#include <algorithm>

#include "slipway/abi.hpp"
#include "slipway/simd.hpp"

namespace slipway {

template <class In, class Out, int columns>
void gather_columns(const Call& call) {
  const int32_t* order = reinterpret_cast<const int32_t*>(call.weights[0]);
  const Range rows = call.share(call.rows);
  for (int64_t r = rows.begin; r < rows.end; ++r) {
    const In* in = call.inputs[0].row<In>(r);
    Out* out = call.outputs[0].row<Out>(r);
    for_columns<columns>([&](int c, int used) {
      In gathered[lanes];
      std::transform(order + c, order + c + used, gathered, [&](int32_t column) { return in[column]; });
      store(out + c, load(gathered, used), used);
    });
  }
}

}  // namespace slipway
