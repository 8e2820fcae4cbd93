// What a linear kernel is compiled for: weight format, shape, types. Layouts: ARCHITECTURE.md, "Host kernels: layouts".
#pragma once
#include "slipway/abi.hpp"
#include "slipway/activations.hpp"
#include "slipway/codes.hpp"

namespace slipway::linear {

// A panel is a row of blocks; a block holds 32 columns x block_k inputs.
struct Bf16 {
  static constexpr bool integer = false, grouped = false;
  static constexpr int block_k = 32, header_bytes = 0, block_bytes = 2048;
};
template <int block>
struct Int8 {
  static constexpr bool integer = true, grouped = false;
  static constexpr int block_k = block, header_bytes = 0, block_bytes = 32 * block, common_zero = codes::int8_zero;
};
template <int group, bool zero_point>
struct Int4 {
  static constexpr bool integer = true, grouped = true, has_zeros = zero_point;
  static constexpr int block_k = group, header_bytes = zero_point ? 128 : 64, block_bytes = header_bytes + group * 16;
  static constexpr int common_zero = codes::int8_zero;  // of the int8 weights that codes stand for
};

struct None {};  // no activation: the linear is not gated

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
constexpr int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

template <class Weights_, int outputs_, int inputs_, class In_, class Out_, class Activation_>
struct Problem {
  using Weights = Weights_;
  using In = In_;
  using Out = Out_;
  using Activation = Activation_;
  static constexpr bool gated = !std::is_same_v<Activation, None>;
  static constexpr int outputs = outputs_, inputs = inputs_;
  static constexpr int panel_outputs = gated ? 16 : 32;
  static constexpr int panels = ceil_div(outputs, panel_outputs);
  static constexpr int blocks = ceil_div(inputs, Weights::block_k);
  static constexpr int64_t panel_bytes = int64_t{blocks} * Weights::block_bytes;

  static const std::byte* panel(const Call& call, int64_t index) { return call.weights[0] + index * panel_bytes; }
  // Of the 32 columns of a panel; integer weights only. They lie behind the panels.
  static const float* scales(const Call& call, int64_t index) { return reinterpret_cast<const float*>(panel(call, panels)) + index * 32; }
  static const float* bias(const Call& call, bool biased) {
    return biased ? reinterpret_cast<const float*>(call.weights[1]) : nullptr;
  }
};

// Takes the 32 sums of a row and a panel to the row's outputs.
//
// Large outputs are written around the caches: weights have driven their lines out, each would first be fetched again, and a core
// waits for its stores in order. Not those of gated linears, half a line each.
template <class P>
class Output {
 public:
  Output(const Call& call, const float* bias)
      : to_(call.outputs[0]), bias_(bias),
        around_(!P::gated && call.rows * to_.row_bytes > most_cached_bytes && (reinterpret_cast<uintptr_t>(to_.data) | to_.row_bytes) % 64 == 0) {}
  Output(const Output&) = delete;
  ~Output() {
    if (around_) _mm_sfence();
  }

  // Asks for the lines of the outputs of `count` rows, long before they are written; not for those written around the caches.
  void expect(int64_t row, int64_t count, int64_t panel) const {
    if (around_) return;
    constexpr int64_t bytes = P::panel_outputs * sizeof(typename P::Out);
    for (int64_t r = row; r < row + count; ++r) {
      const std::byte* at = to_.row<std::byte>(r) + panel * bytes;
      prefetch_line_to_write(at);
      if constexpr (bytes > 64) prefetch_line_to_write(at + 64);
    }
  }

  void operator()(int64_t row, int64_t panel, f32x16 first, f32x16 second) const {
    if (bias_) {
      first = first + load(bias_ + panel * 32);
      second = second + load(bias_ + panel * 32 + 16);
    }
    const int column = static_cast<int>(panel) * P::panel_outputs, left = P::outputs - column;
    typename P::Out* at = to_.row<typename P::Out>(row) + column;
    if constexpr (P::gated) {
      put(at, typename P::Activation{}(first) * second, left);
    } else if (around_ && left >= 32) {
      store_around_cache(at, first);
      store_around_cache(at + 16, second);
    } else {
      put(at, first, left);
      if (left > 16) put(at + 16, second, left - 16);
    }
  }

 private:
  static constexpr int64_t most_cached_bytes = 1 << 17;

  static void put(typename P::Out* at, f32x16 value, int left) { left >= lanes ? store(at, value) : store(at, value, left); }

  const Operand& to_;
  const float* bias_;  // [panels * 32], or null
  const bool around_;
};

// Items [0, total) shared out over the team in rounds, each of half of what is left: threads read long runs of memory, which
// is faster, and finish together. A thread claims its next part before it begins one, so that it can prefetch across the seam.
template <int64_t least>
class Stream {
 public:
  Stream(const Call& call, int64_t total) : ticket_(call.tickets[0]), size_(call.size), total_(total), next_(claim()) {}

  int64_t first() const { return std::min(next_.begin, total_ - 1); }

  // body(item, following): `following` is the item that this thread reads afterwards.
  template <class Body>
  void each(Body body) {
    while (next_.begin < total_) {
      const Range part = next_;
      next_ = claim();
      for (int64_t item = part.begin; item < part.end; ++item) body(item, item + 1 < part.end ? item + 1 : first());
    }
  }

 private:
  Range claim() {
    int64_t ticket = ticket_.claim(1), begin = 0, part;
    while ((part = (total_ - begin) / (2 * size_)) > least && ticket >= size_) begin += part * size_, ticket -= size_;
    part = std::max(part, least);
    return {begin + ticket * part, std::min(begin + (ticket + 1) * part, total_)};
  }

  Ticket& ticket_;
  const int64_t size_, total_;
  Range next_;
};

// Panels that a thread claims at least: about 64 KB, and enough parts for the team to finish together.
template <class P>
constexpr int64_t panel_chunk = std::clamp<int64_t>(65536 / P::panel_bytes, 1, std::max(1, P::panels / 32));

inline constexpr int64_t row_block_bytes = 1'150'000;  // of packed rows that stay in a core's L2 while panels pass

template <int bytes>
void prefetch(const std::byte* at) {
#pragma GCC unroll 64
  for (int i = 0; i < bytes; i += 64) prefetch_line(at + i);
}

// What a front-to-back reader of one panel, then of another, should ask for while it works on a block: the one that lies about
// `bytes` further on, or in the panel that follows.
template <class P, int bytes = 2048>
struct Ahead {
  static constexpr int block_bytes = P::Weights::block_bytes, distance = std::min(P::blocks, int{ceil_div(bytes, block_bytes)});
  const std::byte *panel, *following;

  const std::byte* block(int64_t index) const {
    const int64_t target = index + distance;
    return target < P::blocks ? panel + target * block_bytes : following + (target - P::blocks) * block_bytes;
  }
  static void begin(const std::byte* panel) { prefetch<distance * block_bytes>(panel); }
};

}  // namespace slipway::linear
