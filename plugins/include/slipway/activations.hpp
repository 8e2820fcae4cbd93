// Activation functions on sixteen lanes, named as in a recipe's graph: act::silu and so on.
#pragma once
#include "slipway/simd.hpp"

namespace slipway::act {

inline f32x16 sigmoid(f32x16 x) { return f32x16::splat(1) / (f32x16::splat(1) + exp(f32x16::splat(0) - x)); }

struct silu {
  f32x16 operator()(f32x16 x) const { return x * sigmoid(x); }
};

// x/2 (1 + tanh(u)) = x sigmoid(2u), u = sqrt(2/pi) (x + 0.044715 x^3)
struct gelu_tanh {
  f32x16 operator()(f32x16 x) const {
    const f32x16 cubic = fma(x * x, f32x16::splat(0.044715f), f32x16::splat(1));
    return x * sigmoid(f32x16::splat(2 * 0.7978845608f) * x * cubic);
  }
};

// x/2 (1 + erf(x / sqrt 2)); erf to 1.5e-7 by Abramowitz and Stegun 7.1.26.
struct gelu {
  f32x16 operator()(f32x16 x) const {
    const f32x16 z = abs(x) * f32x16::splat(0.70710678f), one = f32x16::splat(1);
    const f32x16 t = one / fma(z, f32x16::splat(0.3275911f), one);
    f32x16 p = f32x16::splat(1.061405429f);
    for (float c : {-1.453152027f, 1.421413741f, -0.284496736f, 0.254829592f}) p = fma(p, t, f32x16::splat(c));
    const f32x16 rest = p * t * exp(f32x16::splat(0) - z * z);  // 1 - erf(z)
    return f32x16::splat(0.5f) * (x + abs(x) * (one - rest));
  }
};

struct relu {
  f32x16 operator()(f32x16 x) const { return max(x, f32x16::splat(0)); }
};

}  // namespace slipway::act
