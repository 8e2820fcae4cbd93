// act(gate) * up of rows that hold gate | up.
#pragma once
#include "slipway/abi.hpp"
#include "slipway/activations.hpp"

namespace slipway {

// Rows and 256-column parts of a row are shared over the team.
template <class Activation, class In, class Out, int columns>
void gated_activation(const Call& call) {
  constexpr int part = 256, parts = (columns + part - 1) / part;
  const Range shared = call.share(int64_t{call.rows} * parts);
  for (int64_t i = shared.begin; i < shared.end; ++i) {
    const In* in = call.inputs[0].row<In>(i / parts);
    Out* out = call.outputs[0].row<Out>(i / parts);
    const int begin = static_cast<int>(i % parts) * part, end = std::min(begin + part, columns);
    for (int c = begin; c < end; c += lanes) {
      const int used = std::min(lanes, end - c);
      store(out + c, Activation{}(load(in + c, used)) * load(in + columns + c, used), used);
    }
  }
}

}  // namespace slipway
