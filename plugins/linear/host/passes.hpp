// Rows of activations in passes over a panel: as many rows at a time as registers hold sums for.
#pragma once
#include "linear/host/problem.hpp"
#include "slipway/unroll.hpp"

namespace slipway::linear {

inline constexpr int most_ahead = 6144;
template <class P, int rows>
constexpr int bytes_ahead = rows == 1 && !P::Weights::coded ? 3072 : most_ahead;

// Lines that a lone pass over a panel asks for while it works, into L2: those that lie so many bytes further on.
template <class P, int rows>
class FetchAhead {
 public:
  static constexpr bool is_lone = true;
  FetchAhead(const std::byte* panel, const std::byte* following) : ahead_{panel, following} {}
  void begin(int64_t block) { next_ = ahead_.block(block); }
  // The lines that go with part `index` of `count` parts of the block's work.
  template <int count>
  void part(int index) const {
    constexpr int lines = P::Weights::block_bytes / 64, share = ceil_div(lines, count);
    for (int line = index * share; line < std::min(lines, (index + 1) * share); ++line) prefetch_line_to_l2(next_ + line * 64);
  }

 private:
  const Ahead<P, bytes_ahead<P, rows>> ahead_;
  const std::byte* next_ = nullptr;
};

// One of several passes: its share of the next panel. They find their own in L2.
template <class P>
class FetchFollowing {
 public:
  static constexpr bool is_lone = false;
  FetchFollowing(const std::byte* following, int64_t pass, int64_t passes) {
    const int64_t share = ceil_div(block_lines, passes), first = std::min(block_lines, pass * share);
    lines_ = static_cast<int>(std::min(share, block_lines - first));
    from_ = following + P::blocks * first * 64;
  }
  void begin(int64_t block) { next_ = from_ + block * lines_ * 64; }
  template <int count>
  void part(int index) const {
    constexpr int most = ceil_div(block_lines, 2 * count);  // passes are two or more
    for (int line = index * most; line < (index + 1) * most; ++line) {
      if (line < lines_) prefetch_line_to_l2(next_ + line * 64);
    }
  }

 private:
  static constexpr int64_t block_lines = P::Weights::block_bytes / 64;
  int lines_;  // a block
  const std::byte *from_, *next_ = nullptr;
};

// body(tile as a constant) for a block's two column tiles, one after the other as they lie in memory: Zen 4 reads two streams side
// by side, even from L2, at half to two thirds of the speed of one.
template <class Body>
[[gnu::always_inline]] inline void each_tile(Body body) {
  unrolled<2>([&](auto tile) __attribute__((always_inline)) {
    body(tile);
    asm volatile("" ::: "memory");  // or gcc keeps all activations of the block for the other tile, and spills them
  });
}

// Some rows against one panel.
template <class P, class Rows>
struct Pass {
  const Rows& rows;
  const Output<P>& output;
  int64_t row, index;  // its first row; its panel's
  const std::byte* panel;

  // To be called first: asks for the lines that write() writes.
  template <int count>
  void begin() const {
    output.expect(row, count, index);
  }
  // The sums come in memory: beside calls registers hold none, and gcc would keep them out of registers in the loop before as well.
  template <int count>
  void write(const float (&sums)[count][32]) const {
    for (int r = 0; r < count; ++r) output(row + r, index, load(sums[r]), load(sums[r] + 16));
  }
};

inline constexpr int64_t part_rows = 128;  // a thread takes a panel with so many rows at a time, so that all finish together

// multiply(pass, its rows as a constant, fetch) for all rows, packed as Rows, and this thread's parts of panels.
template <class P, class Rows, int most_rows, class Multiply>
void each_pass(const Call& call, const float* bias, Multiply multiply) {
  constexpr int least_rows = (most_rows + 1) / 2;  // of several passes of nearly one size
  const int64_t parts = ceil_div(call.rows, part_rows);
  Stream<panel_chunk<P>> stream(call, P::panels * parts);
  Ahead<P, most_ahead>::begin(P::panel(call, stream.first() / parts));
  const Rows rows = pack_rows<P, Rows>(call);
  const Output<P> output(call, bias);
  stream.each([&](int64_t item, int64_t following) {
    const int64_t index = item / parts, part = item % parts;
    const bool stays = following / parts == index;
    const std::byte *panel = P::panel(call, index), *next = P::panel(call, stays ? std::min<int64_t>(index + 1, P::panels - 1) : following / parts);
    const int64_t end = call.rows * (part + 1) / parts;
    Pass<P, Rows> pass{rows, output, call.rows * part / parts, index, panel};
    const int64_t passes = ceil_div(end - pass.row, most_rows);
    if (passes == 1) {
      return with_constant<most_rows>(end - pass.row, [&](auto count) { multiply(pass, count, FetchAhead<P, count>(panel, next)); });
    }
    for (int64_t number = 0; number < passes; ++number) {
      const int64_t share = ceil_div(end - pass.row, passes - number);
      with_constant<most_rows, least_rows>(share, [&](auto count) { multiply(pass, count, FetchFollowing<P>(next, part * passes + number, parts * passes)); });
      pass.row += share;
    }
  });
}

}  // namespace slipway::linear
