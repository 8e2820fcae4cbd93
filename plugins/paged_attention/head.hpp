// One head of one token: its norm and its rotation.
#pragma once
#include <algorithm>
#include <cmath>

#include "paged_attention/layout.hpp"

namespace slipway::paged_attention {

// One head of one token in float32, zero from head_dim on.
template <class Shape>
struct Head {
  static constexpr int vectors = Layout<Shape>::columns / lanes;
  f32x16 x[vectors];

  Head() {
    for (f32x16& v : x) v = f32x16::splat(0);
  }

  template <class In>
  explicit Head(const In* in) {
    for (int i = 0; i < vectors; ++i) x[i] = columns(in, i);
  }

  // The largest of its numbers without their signs, NaN if one is not finite.
  float magnitude() const {
    f32x16 largest = f32x16::splat(0);
    for (const f32x16& v : x) largest = max_or_nan(largest, abs(v));
    return reduce_max_or_nan(largest);
  }

  void normalize(const float* weight) {
    f32x16 squares[2] = {f32x16::splat(0), f32x16::splat(0)};
    for (int i = 0; i < vectors; ++i) squares[i % 2] = fma(x[i], x[i], squares[i % 2]);
    const f32x16 scale = f32x16::splat(1 / std::sqrt(reduce_add(squares[0] + squares[1]) / Shape::head_dim + Shape::norm_eps));
    for (int i = 0; i < vectors; ++i) x[i] = x[i] * scale * columns(weight, i);
  }

  void rotate(const float* cos_sin) {
    constexpr int half = Shape::rotary_dim / 2, count = half / lanes;
    if constexpr (half % lanes == 0 && !Shape::interleaved) {
      for (int i = 0; i < count; ++i) {
        const f32x16 cos = load(cos_sin + i * lanes), sin = load(cos_sin + half + i * lanes), first = x[i], second = x[count + i];
        x[i] = first * cos - second * sin;
        x[count + i] = second * cos + first * sin;
      }
    } else {
      float flat[vectors * lanes];
      for (int i = 0; i < vectors; ++i) store(flat + i * lanes, x[i]);
      for (int i = 0; i < half; ++i) {
        float &a = flat[Shape::interleaved ? 2 * i : i], &b = flat[Shape::interleaved ? 2 * i + 1 : half + i];
        const float cos = cos_sin[i], sin = cos_sin[half + i], first = a, second = b;
        a = first * cos - second * sin;
        b = second * cos + first * sin;
      }
      for (int i = 0; i < vectors; ++i) x[i] = load(flat + i * lanes);
    }
  }

 private:
  template <class T>
  static f32x16 columns(const T* in, int i) {
    const int used = std::min(lanes, Shape::head_dim - i * lanes);
    return used > 0 ? load(in + i * lanes, used) : f32x16::splat(0);
  }
};

}  // namespace slipway::paged_attention
