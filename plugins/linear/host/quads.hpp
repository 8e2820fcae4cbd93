// Codes of a panel to the B tiles they stand for, [tile 2][row 16][n 16]{4 bytes}: a quad of inputs is one row of integers, or two of pairs of bf16.
#pragma once
#include "linear/host/ladder.hpp"
#include "linear/host/small_floats.hpp"

#if defined(__AVX512VBMI__)
namespace slipway::linear {

inline constexpr int tile_bytes = 1024;

// Of the group that holds `quad` of a block. write() takes a quad of that group to its row, or two, of the first tile and of the second.
template <class Weights>
class Quads;

template <int group, bool zero_point>
class Quads<Int4<group, zero_point>> {
 public:
  Quads(const std::byte* block, int) : first_(block), second_(block) {}
  void write(const std::byte* quad, std::byte* to) const {
    const __m512i nibbles = _mm512_load_si512(quad);
    _mm512_store_si512(to, first_.weights(nibbles));
    _mm512_store_si512(to + tile_bytes, second_.weights(nibbles));
  }

 private:
  using Weights = Int4<group, zero_point>;
  Ladder<Weights, 0> first_;
  Ladder<Weights, 1> second_;
};

template <bool has_units>
class Quads<E4m3<has_units>> {
 public:
  Quads(const std::byte*, int) {}
  void write(const std::byte* quad, std::byte* to) const {
    for (int tile = 0; tile < 2; ++tile) {
      const auto [first, second] = e4m3_pairs(quad + tile * 64);
      _mm512_store_si512(to + tile * tile_bytes, first);
      _mm512_store_si512(to + tile * tile_bytes + 64, second);
    }
  }
};

// A code has two significant bits, nvfp4's scale four: bf16 holds their product.
template <int group>
class Quads<E2m1<group>> {
 public:
  Quads(const std::byte* block, int quad) {
    for (int tile = 0; tile < 2; ++tile) scale_[tile] = scale_of(E2m1<group>{}, block + quad / E2m1<group>::group_quads * 32 + tile * 16);
  }
  void write(const std::byte* quad, std::byte* to) const {
    const Words codes = load_words(quad);
    unrolled<4>([&](auto i) __attribute__((always_inline)) {
      constexpr int tile = i / 2, pair = i % 2;
      const auto weights = [&](int input) __attribute__((always_inline)) { return e2m1(codes, 8 * input + 4 * tile) * scale_[tile]; };
      _mm512_store_si512(to + tile * tile_bytes + pair * 64, paired(weights(2 * pair), weights(2 * pair + 1)));
    });
  }

 private:
  f32x16 scale_[2];
};

// Spreads a k step of a panel to two B tiles in portions, and fetches what `ahead` says beside it. Integers behind the last block are those of the
// last again: their activations are zero.
template <class P>
class Spread {
  using Weights = typename P::Weights;
  static constexpr int rows = Weights::integer ? 1 : 2;  // of a quad
  static constexpr int block_quads = Weights::block_k / 4, group_quads = Weights::group_quads;

 public:
  static constexpr int quads = 16 / rows, inputs = 4 * quads;  // of a k step

  Spread(const Ahead<P>& ahead, int64_t step, std::byte* to, int quad = 0)
      : ahead_(ahead), to_(to), first_(step * quads), from_(quad), quad_(quad), group_(enter()) {}

  // Up to quad `end`.
  void to(int end) {
#pragma GCC unroll 16
    for (; quad_ < end; ++quad_) {
      if (group_quads < quads && quad_ % group_quads == 0 && quad_ > from_) group_ = enter();
      const int at = Weights::header_bytes + static_cast<int>((first_ + quad_) % block_quads) * Weights::quad_bytes;
      prefetch<Weights::quad_bytes>(next_ + at);
      group_.write(block_ + at, to_ + quad_ * rows * 64);
    }
    asm volatile("" ::: "memory");  // gcc 12 does not know that a tile load reads memory
  }

 private:
  Quads<Weights> enter() {
    const int64_t quad = first_ + quad_, index = std::min<int64_t>(quad / block_quads, P::blocks - 1);
    block_ = ahead_.panel + index * Weights::block_bytes;
    next_ = ahead_.block(index);
    prefetch<Weights::header_bytes>(next_);
    return {block_, static_cast<int>(quad % block_quads)};
  }

  const Ahead<P> ahead_;
  std::byte* const to_;
  const int64_t first_;  // quad of the panel
  const int from_;       // quad of the step
  int quad_;
  const std::byte *block_, *next_;
  Quads<Weights> group_;
};

}  // namespace slipway::linear
#endif
