// Few rows on AMX: each panel streams through once, at the speed of memory.
#pragma once
#include "linear/host/amx.hpp"

#if defined(__AMX_TILE__)
namespace slipway::linear {

// One or two A tiles of rows keep their sums in tile registers over a whole panel. More pass in pairs over a short run of k
// steps, which stays in L1. Sums become outputs a few rows a step, during the run after theirs: all at once, they would leave
// memory idle for a fifth of the time.
template <class P>
class StreamedLinear {
  using Rows = TileRows<P>;
  static constexpr int64_t rows_per_tile = 16 / Rows::planes, short_run = 4;

 public:
  static constexpr int64_t max_tiles = 5, max_rows = max_tiles * rows_per_tile;  // from here on BlockedLinear is as fast

  static void run(const Call& call, const float* bias) { StreamedLinear{call, bias}.run(); }

 private:
  StreamedLinear(const Call& call, const float* bias)
      : call_(call), tiles_(ceil_div(call.rows, rows_per_tile)), run_(tiles_ <= 2 ? P::blocks : short_run),
        rows_a_step_(ceil_div(2 * rows_per_tile, std::min<int64_t>(run_, P::blocks))), stream_(begin(call)),
        rows_(pack_rows<P, Rows>(call)), output_(call, bias) {}

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
      const Ahead<P> ahead{P::panel(call_, panel), P::panel(call_, following)};
      for (int64_t step = 0; step < P::blocks; step += run_) {
        const int64_t end = std::min<int64_t>(step + run_, P::blocks);
        const auto fetch = [&](int64_t block, int column_tile) { prefetch<1024>(ahead.block(block) + column_tile * 1024); };
        tiles_ > 1 ? multiply<2>(panel, 0, step, end, fetch) : multiply<1>(panel, 0, step, end, fetch);
        for (int64_t tile = 2; tile < tiles_; tile += 2)
          tile + 1 < tiles_ ? multiply<2>(panel, tile, step, end, [](int64_t, int) {}) : multiply<1>(panel, tile, step, end, [](int64_t, int) {});
      }
    });
    finish(call_.rows);
  }

  // k steps [step, end) of one panel for A tiles from `tile` on.
  template <int row_tiles, class Fetch>
  void multiply(int64_t panel, int64_t tile, int64_t step, int64_t end, Fetch fetch) {
    std::byte* sums = sums_ + tile * sums_tile_bytes;
    step == 0 ? clear_sums<row_tiles>() : load_sums<row_tiles>(sums);
    for (const std::byte *a = rows_.tiles + tile * Rows::tile_row_bytes; step < end; ++step) {
      multiply_step<typename P::Weights, row_tiles>(a + step * 1024, a + Rows::tile_row_bytes + step * 1024,
                                                    P::panel(call_, panel) + step * 2048,
                                                    [&](int column_tile) { fetch(step, column_tile); });
      finish(rows_a_step_);
    }
    store_sums<row_tiles>(sums);
    if (end == P::blocks) {
      finish(call_.rows);
      finished_panel_ = panel, next_row_ = tile * rows_per_tile;
      end_row_ = std::min<int64_t>(next_row_ + row_tiles * rows_per_tile, call_.rows);
    }
  }

  void finish(int64_t count) {
    for (const int64_t end = std::min(next_row_ + count, end_row_); next_row_ < end; ++next_row_)
      finish_row<P>(call_, rows_, next_row_, sums_ + next_row_ * Rows::planes * sums_row_bytes, finished_panel_, output_);
  }

  const Call& call_;
  const int64_t tiles_, run_, rows_a_step_;
  Stream<panel_chunk<P>> stream_;
  const Rows rows_;
  const Output<P> output_;
  int64_t finished_panel_ = 0, next_row_ = 0, end_row_ = 0;  // rows whose sums are not yet outputs
  alignas(64) std::byte sums_[max_tiles * sums_tile_bytes];
};

}  // namespace slipway::linear
#endif
