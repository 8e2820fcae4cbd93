// Activation functions, named as in a recipe's graph: act::silu and so on.
#pragma once
#include "slipway/cuda/device.cuh"

namespace slipway::cuda::act {

inline float sigmoid(float x) { return divide_approximate(1, 1 + exp2_approximate(x * -1.4426950408889634f)); }

struct silu {
  float operator()(float x) const { return x * sigmoid(x); }
};

// x/2 (1 + tanh(u)) = x sigmoid(2u), u = sqrt(2/pi) (x + 0.044715 x^3)
struct gelu_tanh {
  float operator()(float x) const { return x * sigmoid(2 * 0.7978845608f * x * (1 + 0.044715f * x * x)); }
};

struct gelu {
  float operator()(float x) const { return 0.5f * x * (1 + erff(x * 0.70710678f)); }
};

struct relu {
  float operator()(float x) const { return max(x, 0.0f); }
};

}  // namespace slipway::cuda::act
