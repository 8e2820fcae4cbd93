// Groups of columns scaled to a root mean square of one: a whole row, or each head of it.
#pragma once
#include <cmath>

#include "slipway/abi.hpp"
#include "slipway/simd.hpp"

namespace slipway {

// weight: [group] float32, or null.
template <int group, class In, class Out>
void normalize_group(const In* in, const float* weight, float eps, Out* out) {
  f32x16 squares = f32x16::splat(0);
  for_columns<group>([&](int c, int used) {
    const f32x16 x = load(in + c, used);
    squares = fma(x, x, squares);
  });
  const f32x16 scale = f32x16::splat(1 / std::sqrt(reduce_add(squares) / group + eps));
  for_columns<group>([&](int c, int used) {
    const f32x16 normed = load(in + c, used) * scale;
    store(out + c, weight ? normed * load(weight + c, used) : normed, used);
  });
}

// Groups of all rows are shared over the team, so that the heads of one row are too.
template <class In, class Out, int columns, int group>
void rms_norm(const Call& call, const float* weight, float eps) {
  constexpr int groups = columns / group;
  const Range shared = call.share(int64_t{call.rows} * groups);
  for (int64_t i = shared.begin; i < shared.end; ++i) {
    const int64_t row = i / groups, column = i % groups * group;
    normalize_group<group>(call.inputs[0].row<In>(row) + column, weight, eps, call.outputs[0].row<Out>(row) + column);
  }
}

// outputs: the norm of the sum, the sum in float32.
template <class In, class Residual, class Out, int columns, int group>
void add_rms_norm(const Call& call, const float* weight, float eps) {
  const Range rows = call.share(call.rows);
  for (int64_t r = rows.begin; r < rows.end; ++r) {
    const In* x = call.inputs[0].row<In>(r);
    const Residual* residual = call.inputs[1].row<Residual>(r);
    float* sum = call.outputs[1].row<float>(r);
    for_columns<columns>([&](int c, int used) { store(sum + c, load(x + c, used) + load(residual + c, used), used); });
    normalize_group<group>(sum, weight, eps, call.outputs[0].row<Out>(r));
  }
}

}  // namespace slipway
