// Few rows on AMX: each panel streams through once, at the speed of memory.
#pragma once
#include "linear/host/amx.hpp"
#include "linear/host/quads.hpp"

#if defined(__AMX_TILE__)
namespace slipway::linear {

// The B tiles of a panel's k steps, where they lie in the weights. In each pass over a step, of `passes`, a part of a later one
// is asked for.
template <class P, int passes>
class StoredSteps {
 public:
  static_assert(P::Weights::block_bytes == 2048);  // a block is a k step
  void enter(const Ahead<P>& ahead) { ahead_ = ahead; }
  const std::byte* tiles(int64_t step) const { return ahead_.panel + step * 2048; }

  auto aside(int64_t step, int pass) const {
    return [next = ahead_.block(step), line = pass * 32 / passes, count = (pass + 1) * 32 / passes - pass * 32 / passes](int product, int products) {
      for (int i = count * product / products; i < count * (product + 1) / products; ++i) prefetch_line(next + (line + i) * 64);
    };
  }

 private:
  Ahead<P> ahead_{};
};

// Those of codes, spread some steps before they are multiplied, across the seam between panels too.
template <class P, int passes>
class SpreadSteps {
 public:
  void enter(const Ahead<P>& ahead) {
    ahead_ = ahead;
    first_ += steps;
    if (first_ > 0) return;
    for (int64_t step = 0; step < lead; ++step) Spread<P>(ahead_, step, slot(step)).to(Spread<P>::quads);
  }
  const std::byte* tiles(int64_t step) { return slot(step); }

  auto aside(int64_t step, int pass) {
    const int64_t later = step + lead;
    const bool seam = later >= steps;
    const Ahead<P> ahead = seam ? Ahead<P>{ahead_.following, ahead_.following} : ahead_;
    constexpr int quads = Spread<P>::quads;
    const int from = pass * quads / passes, count = (pass + 1) * quads / passes - from;
    return [from, count, spread = Spread<P>(ahead, seam ? later - steps : later, slot(later), from)](int product, int products) mutable {
      spread.to(from + count * (product + 1) / products);
    };
  }

 private:
  static constexpr int64_t kept = 8, steps = TileRows<P>::k_steps, lead = std::min(steps, kept / 2);
  std::byte* slot(int64_t step) { return ring_ + (first_ + step) % kept * 2048; }

  Ahead<P> ahead_{};
  int64_t first_ = -steps;  // k steps before this panel
  alignas(64) std::byte ring_[kept * 2048];
};

// One or two A tiles of rows keep their sums in tile registers over a whole panel. More pass in pairs over a short run of k
// steps, which stays in L1. Sums become outputs a few rows at a time, during the run after theirs: all at once, they would leave
// memory idle for a fifth of the time.
template <class P, int passes>
class StreamedLinear {
  using Rows = TileRows<P>;
  using Steps = std::conditional_t<P::Weights::coded, SpreadSteps<P, passes>, StoredSteps<P, passes>>;
  static constexpr int64_t rows_per_tile = 16 / Rows::planes, run_steps = passes == 1 && !P::Weights::has_units ? Rows::k_steps : std::min<int64_t>(unit_steps, Rows::k_steps);
  static constexpr int64_t rows_at_once = ceil_div(2 * rows_per_tile, 4 * run_steps);

 public:
  static void run(const Call& call, const float* bias) { StreamedLinear{call, bias}.run(); }

 private:
  StreamedLinear(const Call& call, const float* bias)
      : call_(call), tiles_(ceil_div(call.rows, rows_per_tile)), stream_(begin(call)), rows_(pack_rows<P, Rows>(call)), output_(call, bias) {}

  // Weights are on their way while rows are packed.
  static Stream<panel_chunk<P>> begin(const Call& call) {
    const int64_t a_rows = call.rows * Rows::planes;
    configure_tiles(std::min<int64_t>(a_rows, 16), a_rows < 32 ? std::max<int64_t>(a_rows - 16, 1) : 16);
    const Stream<panel_chunk<P>> stream(call, P::panels);
    Ahead<P>::begin(P::panel(call, stream.first()));
    return stream;
  }

  void run() {
    stream_.each([&](int64_t panel, int64_t following) {
      steps_.enter({P::panel(call_, panel), P::panel(call_, following)});
      for (int64_t step = 0; step < Rows::k_steps; step += run_steps) {
        const int64_t end = std::min(step + run_steps, Rows::k_steps);
        for (int pass = 0; pass < passes; ++pass)
          pass * 2 + 1 < tiles_ ? multiply<2>(panel, pass, step, end) : multiply<1>(panel, pass, step, end);
      }
    });
    finish(call_.rows);
  }

  // k steps [step, end) of one panel for one or two A tiles.
  template <int row_tiles>
  void multiply(int64_t panel, int pass, int64_t step, int64_t end) {
    const int64_t tile = 2 * pass;
    std::byte* sums = sums_ + tile * sums_tile_bytes;
    P::Weights::has_units || step == 0 ? clear_sums<row_tiles>() : load_sums<row_tiles>(sums);
    for (const std::byte *a = rows_.tiles + tile * Rows::tile_row_bytes; step < end; ++step) {
      auto aside = steps_.aside(step, pass);
      multiply_step<typename P::Weights, row_tiles>(a + step * 1024, a + Rows::tile_row_bytes + step * 1024, steps_.tiles(step),
                                                    [&](int product) {
                                                      aside(product, 2 * row_tiles);
                                                      finish(rows_at_once * 2 / row_tiles);
                                                    });
    }
    const bool complete = P::Weights::has_units || end == Rows::k_steps;
    if (complete) finish(call_.rows);  // of the run before
    store_sums<row_tiles>(sums);
    if (complete) {
      finished_panel_ = panel, finished_end_ = end, next_row_ = tile * rows_per_tile;
      end_row_ = std::min<int64_t>(next_row_ + row_tiles * rows_per_tile, call_.rows);
    }
  }

  void finish(int64_t count) {
    for (const int64_t end = std::min(next_row_ + count, end_row_); next_row_ < end; ++next_row_) {
      const std::byte* sums = sums_ + next_row_ * Rows::planes * sums_row_bytes;
      if constexpr (P::Weights::has_units) {
        std::byte* totals = totals_ + next_row_ * sums_row_bytes;
        add_unit<P>(call_, sums, finished_panel_, finished_end_, totals);
        if (finished_end_ < Rows::k_steps) continue;
        sums = totals;
      }
      finish_row<P>(call_, rows_, next_row_, sums, finished_panel_, output_);
    }
  }

  const Call& call_;
  const int64_t tiles_;
  Stream<panel_chunk<P>> stream_;
  Steps steps_;
  const Rows rows_;
  const Output<P> output_;
  int64_t finished_panel_ = 0, finished_end_ = 0, next_row_ = 0, end_row_ = 0;  // rows whose sums, of a run that ended with that k step, wait for finish()
  alignas(64) std::byte sums_[2 * passes * sums_tile_bytes];
  alignas(64) std::byte totals_[P::Weights::has_units ? sizeof sums_ : 1];
};

// From these rows on BlockedLinear is as fast.
template <class P>
constexpr int64_t most_streamed_rows = 5 * 16 / TileRows<P>::planes;

template <class P>
void run_streamed(const Call& call, const float* bias) {
  switch (ceil_div(call.rows * TileRows<P>::planes, 32)) {
    case 1: return StreamedLinear<P, 1>::run(call, bias);
    case 2: return StreamedLinear<P, 2>::run(call, bias);
    default: return StreamedLinear<P, 3>::run(call, bias);
  }
}

}  // namespace slipway::linear
#endif
