// Many rows on AMX: a block of packed rows stays in L2 while panels pass; sums between k blocks live in float32 or int32.
#pragma once
#include "linear/host/amx.hpp"
#include "linear/host/quads.hpp"

#if defined(__AMX_TILE__)
namespace slipway::linear {

// B tiles of a panel as they lie in the weights.
template <class P>
struct StoredPanels {
  static constexpr int64_t step_bytes = 2048;
  explicit StoredPanels(std::byte*) {}
  const std::byte* tiles(const Call& call, int64_t panel, int64_t step, int64_t) const {
    return P::panel(call, panel) + step * step_bytes;
  }
};

// k steps of a coded panel, spread to B tiles in this thread's scratch.
template <class P>
struct SpreadPanels {
  static constexpr int64_t step_bytes = P::Weights::block_bytes * Spread<P>::inputs / P::Weights::block_k;
  std::byte* buffer;
  explicit SpreadPanels(std::byte* scratch) : buffer(scratch) {}
  const std::byte* tiles(const Call& call, int64_t panel, int64_t step, int64_t steps) const {
    const Ahead<P> ahead{P::panel(call, panel), P::panel(call, panel)};
    for (int64_t done = 0; done < steps; ++done) Spread<P>(ahead, step + done, buffer + done * 2048).to(Spread<P>::quads);
    return buffer;
  }
};

// Rows and panels are cut so that a block of packed rows stays in half of a core's L2; inputs are cut too, and panels taken
// in groups, where whole rows of that block would be too long.
template <class P>
class BlockedLinear {
  using Rows = TileRows<P>;
  using Panels = std::conditional_t<P::Weights::coded, SpreadPanels<P>, StoredPanels<P>>;
  static constexpr int64_t cut_steps = 16, cut_panels = 8, most_whole_steps = 128;
  static constexpr int64_t most_tiles = std::clamp<int64_t>(row_block_bytes / (1024 * Rows::k_steps) / 2 * 2, 32, 64);
  static constexpr bool fits = most_tiles * Rows::k_steps * 1024 <= row_block_bytes;  // a full block of whole rows
  static constexpr int64_t rows_per_tile = 16 / Rows::planes;
  static constexpr int64_t inner_steps = P::Weights::has_units ? unit_steps : 8;  // B tiles of so many k steps stay in L1 while row tiles pass
  static constexpr int64_t sums_panel_bytes = most_tiles * sums_tile_bytes;
  static constexpr int64_t sums_bytes = sums_panel_bytes * (fits ? 1 : cut_panels);
  static constexpr int64_t spread_bytes = std::min(Rows::k_steps, most_whole_steps) * 2048;

 public:
  static constexpr int64_t scratch_bytes = sums_bytes + spread_bytes;

  static void run(const Call& call, std::byte* scratch, const float* bias) {
    BlockedLinear{call, scratch, bias}.run();
  }

 private:
  BlockedLinear(const Call& call, std::byte* scratch, const float* bias)
      : call_(call), sums_(scratch), panels_(scratch + sums_bytes), output_(call, bias),
        rows_((configure_tiles(), pack_rows<P, Rows>(call))) {}

  void run() {
    const int64_t tiles = ceil_div(call_.rows, rows_per_tile), row_blocks = ceil_div(tiles, most_tiles);
    const int64_t block_tiles = round_up(ceil_div(tiles, row_blocks), 2);
    const bool whole = fits || (block_tiles * Rows::k_steps * 1024 <= row_block_bytes && Rows::k_steps <= most_whole_steps);
    block_steps_ = whole ? Rows::k_steps : cut_steps;
    const int64_t group = whole ? 1 : std::clamp<int64_t>(P::panels / (2 * call_.size), 1, cut_panels);
    const int64_t groups = ceil_div(P::panels, group), tasks = ceil_div(tiles, block_tiles) * groups;
    for (int64_t task = call_.tickets[0].claim(1), next; task < tasks; task = next) {
      next = call_.tickets[0].claim(1);
      const int64_t tile = task / groups * block_tiles, panel = task % groups * group;
      multiply(tile, std::min(block_tiles, tiles - tile), panel, std::min<int64_t>(panel + group, P::panels),
               std::min(next, tasks - 1) % groups * group);
    }
  }

  // Rows of A tiles [tile, tile + tiles) times panels [first, end); `following`: the panel this thread reads afterwards.
  void multiply(int64_t tile, int64_t tiles, int64_t first, int64_t end, int64_t following) {
    for (int64_t step = 0; step < Rows::k_steps; step += block_steps_) {
      const int64_t steps = std::min(block_steps_, Rows::k_steps - step);
      const int64_t next_step = step + steps < Rows::k_steps ? step + steps : 0;
      for (int64_t panel = first; panel < end; ++panel) {
        const std::byte* next = panel + 1 < end ? P::panel(call_, panel + 1) + step * Panels::step_bytes
                                                : P::panel(call_, next_step ? first : following) + next_step * Panels::step_bytes;
        multiply(tile, tiles, panel, step, steps, next, sums_ + (panel - first) * sums_panel_bytes);
      }
    }
  }

  // One k block of one panel; meanwhile `next` is fetched into L2, a little with every k step.
  void multiply(int64_t tile, int64_t tiles, int64_t panel, int64_t step, int64_t steps, const std::byte* next, std::byte* sums) {
    const std::byte* b = panels_.tiles(call_, panel, step, steps);
    const int64_t lines = ceil_div(steps * Panels::step_bytes, 64 * steps * ceil_div(tiles, 2));  // of `next`, a k step
    for (int64_t inner = 0; inner < steps; inner += inner_steps) {
      const int64_t some = std::min(inner_steps, steps - inner);
      const bool begins = step + inner == 0, ends = step + inner + some == Rows::k_steps;
      for (int64_t t = 0; t < tiles; t += 2, next += lines * some * 64) {
        const std::byte* a = rows_.tiles + (tile + t) * Rows::tile_row_bytes + (step + inner) * 1024;
        std::byte* c = sums + t * sums_tile_bytes;
        std::byte* to = P::Weights::has_units ? unit_ : c;
        if (t + 1 < tiles) {
          multiply_inner<2>(a, b + inner * 2048, some, to, begins, next, lines);
        } else {
          multiply_inner<1>(a, b + inner * 2048, some, to, begins, next, lines);
        }
        if constexpr (P::Weights::has_units)
          for (int64_t at = 0; at < std::min<int64_t>(2, tiles - t) * sums_tile_bytes; at += sums_row_bytes)
            add_unit<P>(call_, unit_ + at, panel, step + inner + some, c + at);
        if (ends)
          for (int64_t u = t; u < std::min(t + 2, tiles); ++u) finish(tile + u, sums + u * sums_tile_bytes, panel);
      }
    }
  }

  template <int row_tiles>
  static void multiply_inner(const std::byte* a, const std::byte* b, int64_t steps, std::byte* c, bool begins, const std::byte* next,
                             int64_t lines) {
    if (begins || P::Weights::has_units) {
      clear_sums<row_tiles>();
    } else {
      load_sums<row_tiles>(c);
    }
    for (int64_t step = 0; step < steps; ++step) {
      const auto fetch = [&](int product) {
        for (int64_t line = product; line < lines; line += 2 * row_tiles, next += 64) _mm_prefetch(next, _MM_HINT_T1);
      };
      multiply_step<typename P::Weights, row_tiles>(a + step * 1024, a + Rows::tile_row_bytes + step * 1024, b + step * 2048, fetch);
    }
    store_sums<row_tiles>(c);
  }

  void finish(int64_t tile, const std::byte* sums, int64_t panel) const {
    const int64_t begin = tile * rows_per_tile, end = std::min(begin + rows_per_tile, int64_t{call_.rows});
    for (int64_t row = begin; row < end; ++row, sums += Rows::planes * sums_row_bytes)
      finish_row<P>(call_, rows_, row, sums, panel, output_);
  }

  const Call& call_;
  int64_t block_steps_ = 0;
  std::byte* sums_;
  const Panels panels_;
  const Output<P> output_;
  const Rows rows_;
  alignas(64) std::byte unit_[P::Weights::has_units ? 2 * sums_tile_bytes : 1];
};

}  // namespace slipway::linear
#endif
