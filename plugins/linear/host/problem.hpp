// What a linear kernel is compiled for: weight format, shape, types. Layouts: ARCHITECTURE.md, "Host kernels: layouts".
#pragma once
#include "slipway/abi.hpp"
#include "slipway/activations.hpp"
#include "slipway/codes.hpp"

namespace slipway::linear {

// A panel is a row of blocks; a block holds 32 columns x block_k inputs. integer: multiplied as integers. scaled: each column has a float32, counted
// in at the end. has_units: each tile of a panel has one for every unit_k inputs.
//
// coded: not stored as they are multiplied. A block of those is a header and quads of codes, four inputs of all columns each, in order; so many
// quads of a group share an entry of the header.
struct Bf16 {
  static constexpr bool integer = false, coded = false, scaled = false, has_units = false;
  static constexpr int block_k = 32, block_bytes = 2048;
};
template <int block>
struct Int8 {
  static constexpr bool integer = true, coded = false, scaled = true, has_units = false;
  static constexpr int block_k = block, block_bytes = 32 * block, common_zero = codes::int8_zero;
};
template <int group, bool zero_point>
struct Int4 {
  static constexpr bool integer = true, coded = true, scaled = true, has_units = false, has_zeros = zero_point;
  static constexpr int block_k = group, group_quads = group / 4, quad_bytes = 64;
  static constexpr int header_bytes = zero_point ? 128 : 64, block_bytes = header_bytes + group * 16;
  static constexpr int common_zero = codes::int8_zero;  // of the int8 weights that codes stand for
};
template <bool has_units_>
struct E4m3 {
  static constexpr bool integer = false, coded = true, scaled = !has_units_, has_units = has_units_;
  static constexpr int block_k = 32, group_quads = block_k / 4, quad_bytes = 128, header_bytes = 0, block_bytes = 1024;
};
using Fp8 = E4m3<false>;
using Fp8Block = E4m3<true>;
inline constexpr int unit_k = 128;
// group: inputs that share a byte of a column's scale; what the byte means is scale_of's (small_floats.hpp).
template <int group>
struct E2m1 {
  static constexpr bool integer = false, coded = true, scaled = true, has_units = false;
  static constexpr int block_k = 64, group_quads = group / 4, quad_bytes = 64, groups = block_k / group;
  static constexpr int header_bytes = 32 * groups, block_bytes = header_bytes + block_k * 16;
};
using Nvfp4 = E2m1<16>;
using Mxfp4 = E2m1<32>;

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
  // Of the 32 columns of a panel, or of its two tiles in unit_k inputs from k on. They lie behind the panels.
  static const float* scales(const Call& call, int64_t index) { return behind(call) + index * 32; }
  static const float* units(const Call& call, int64_t index, int64_t k) { return behind(call) + (index * ceil_div(inputs, unit_k) + k / unit_k) * 2; }
  static const float* bias(const Call& call, bool biased) {
    return biased ? reinterpret_cast<const float*>(call.weights[1]) : nullptr;
  }

 private:
  static const float* behind(const Call& call) { return reinterpret_cast<const float*>(panel(call, panels)); }
};

// What sums of a tile in a panel are to be multiplied by; they are of all inputs or, if weights have units, of the unit_k that input k is one of.
template <class P>
f32x16 scale(const Call& call, int64_t panel, int tile, int64_t k) {
  if constexpr (P::Weights::scaled) return load(P::scales(call, panel) + tile * 16);
  if constexpr (P::Weights::has_units) return f32x16::splat(P::units(call, panel, k)[tile]);
  return f32x16::splat(1);
}

// Whether sums of inputs up to `end` are complete, to be multiplied by their scale.
template <class P>
constexpr bool complete(int64_t end) {
  return end >= P::inputs || (P::Weights::has_units && end % unit_k == 0);
}

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
