// Loops whose index is a constant.
#pragma once
#include <cstdint>
#include <type_traits>
#include <utility>

namespace slipway {

// body(0), body(1) ... with constants: gcc 12 keeps an array in registers only where it is indexed by those.
template <int count, class Body>
[[gnu::always_inline]] inline void unrolled(Body body) {
  [&]<int... i>(std::integer_sequence<int, i...>) __attribute__((always_inline)) {
    (body(std::integral_constant<int, i>{}), ...);
  }(std::make_integer_sequence<int, count>{});
}

// Calls body with `count`, least .. most, as a constant.
template <int most, int least = 1, class Body>
void with_constant(int64_t count, Body body) {
  if constexpr (most > least) {
    if (count < most) return with_constant<most - 1, least>(count, body);
  }
  body(std::integral_constant<int, most>{});
}

}  // namespace slipway
