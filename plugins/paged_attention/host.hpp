// Causal attention of a ragged batch over a paged KV cache: decode, prefill, chunked prefill and verification alike.
//
// A tile of query rows reads its positions in chunks of 512 counted from position 0 of the sequence; chunks merge in
// order. A work item is one tile, or a few that read each chunk together while it is in the processor's cache. When
// there are few tiles, threads share a tile's chunks: tickets are claimed in order, and each thread waits for the chunk
// before its own to be merged.
//
// The keys and values of the step reach the cache before they are read: where whole items go to threads, those of a sequence with
// few rows by the thread that has its item, as no other reads them in this step; all others in a phase of their own.
#pragma once
#include <algorithm>
#include <atomic>
#include <cmath>
#include <utility>

#include "paged_attention/bf16_cache.hpp"
#include "paged_attention/int8_floats.hpp"
#include "paged_attention/int8_planes.hpp"
#include "paged_attention/items.hpp"
#include "paged_attention/layout.hpp"
#include "paged_attention/prepare.hpp"
#include "paged_attention/softmax.hpp"

namespace slipway::paged_attention {

template <class Shape>
class Attention {
 public:
  explicit Attention(const Call& call)
      : call_(call), batch_(*call.batch), weights_(call), local_(*reinterpret_cast<Local*>(call.local)) {}

  void reset_slots() {
    for (int i = 0; i < slots; ++i) slots_of(call_)[i].merged.store(0, std::memory_order_relaxed);
  }

  // Whole items to each thread, which claims one ahead: what it reads first is on its way in good time.
  void run_items(int rows_per_item) {
    Items<Shape> items(batch_, rows_per_item, false);
    const auto claim = [&] {
      if (!items.seek(call_.tickets[1].claim(1))) return false;
      expect(items.item());
      return true;
    };
    Blocks blocks, next;
    bool claimed = claim(), is_first = true;
    if (claimed) blocks = blocks_of(items.item());
    while (claimed) {
      const Rows item = items.item();
      const bool writes = writes_itself<Shape>(batch_, item.seq);
      const int prepared = (item.count + (writes ? 2 : 0)) * head_steps;
      if (std::exchange(is_first, false)) fetch_both(blocks, prepared);
      else fetch_values(blocks, prepared);
      claimed = claim();
      if (writes) {
        write_sequence(call_, weights_, item.seq, item.kv_head);
        values_ahead_.step(2 * head_steps);
      }
      prepare_queries(item);
      for (int chunk_index = item.first_chunk; chunk_index < item.end_chunk; ++chunk_index, blocks = next) {
        if (chunk_index > item.first_chunk) fetch_values(blocks, 0);
        if (chunk_index + 1 < item.end_chunk) next = blocks_of(item, chunk_index + 1);
        else next = claimed ? blocks_of(items.item()) : Blocks();
        fetch_keys(next, blocks.count, item.count);
        attend_tiles(item, chunk_index, blocks);
      }
      for (int t = 0; t * tile_rows < item.count; ++t) write(tile_of(item, t), local_.parts[t]);
    }
  }

  // Chunks of tiles to each thread; fewer tiles than slots.
  void run_chunks() {
    Items<Shape> items(batch_, tile_rows, true);
    int64_t prepared = -1, expected = -1;  // the tile whose queries are prepared; the ticket whose keys are on their way
    Blocks blocks, next;
    for (int64_t ticket; items.seek(ticket = call_.tickets[1].claim(1));) {
      const Rows& tile = items.item();
      const int done = static_cast<int>(ticket - items.first_ticket());
      const int chunk_index = tile.first_chunk + done, later = chunk_index + call_.size;
      const bool is_new = std::exchange(prepared, items.number()) != items.number();
      if (is_new) expect_queries(tile);
      blocks = blocks_of(tile, chunk_index);
      next = later < tile.end_chunk ? blocks_of(tile, later) : Blocks();
      const int steps = is_new ? tile.count * head_steps : 0;
      if (std::exchange(expected, later < tile.end_chunk ? ticket + call_.size : -1) == ticket) fetch_values(blocks, steps);
      else fetch_both(blocks, steps);
      fetch_keys(next, blocks.count, tile.count);
      if (is_new) prepare_queries(tile);
      attend(tile, chunk_index, blocks, local_.queries[0], local_.parts[0]);
      Slot& slot = slots_of(call_)[items.number()];
      for (Backoff backoff; slot.merged.load(std::memory_order_acquire) != done;) backoff();
      if (done == 0) std::memcpy(&slot.part, &local_.parts[0], sizeof(Part) - (tile_rows - tile.count) * sizeof slot.part.out[0]);
      else merge(slot.part, local_.parts[0], tile.count);
      if (done + 1 == tile.chunks()) write(tile, slot.part);
      slot.merged.store(done + 1, std::memory_order_release);
    }
  }

 private:
  using L = Layout<Shape>;
  using Cache = typename Shape::Cache;
  using Part = State<L::columns>;

  struct alignas(64) Slot {
    std::atomic<int> merged;  // chunks
    alignas(64) Part part;
  };

  struct Local {
    alignas(64) float scores[chunk / lanes * score_stride];
    typename Cache::Queries queries[item_tiles];
    Folds folds;
    Part parts[item_tiles + 1];
  };
  static_assert(sizeof(Local) <= Shape::local_bytes && slots * sizeof(Slot) <= Shape::slots_bytes);

  static constexpr int head_steps = std::max<int>(1, Cache::key_steps / 8);  // of `values_ahead_`, for each head that is prepared or written

  static Slot* slots_of(const Call& call) { return reinterpret_cast<Slot*>(call.shared); }

  int token_row(const Rows& rows, int r) const { return batch_.cu_seqlens[rows.seq] + (rows.first + r) / L::group; }
  int head(const Rows& rows, int r) const { return rows.kv_head * L::group + (rows.first + r) % L::group; }

  const typename Shape::Query* query(const Rows& rows, int r) const {
    return call_.inputs[0].row<typename Shape::Query>(token_row(rows, r)) + head(rows, r) * Shape::head_dim;
  }

  Rows tile_of(const Rows& item, int t) const {
    return make_rows<Shape>(batch_, item.seq, item.kv_head, item.first + t * tile_rows, tile_rows);
  }

  // Positions that query row r sees in a chunk or block of them that begins at `origin`.
  Positions seen(const Rows& rows, int r, int origin) const {
    const int position = batch_.positions[token_row(rows, r)];
    const int begin = Shape::window ? position - Shape::window + 1 : 0;
    return {std::max(begin - origin, 0), std::min(position + 1 - origin, chunk)};
  }

  // Asks for what another core has just written: the first queries of the step, the others come as these are prepared; keys and values
  // where the item writes them.
  void expect_queries(const Rows& rows) const {
    for (int r = 0; r < std::min(rows.count, few_rows); ++r) prefetch_head<Shape>(query(rows, r));
  }
  void expect(const Rows& rows) const {
    expect_queries(rows);
    if (!writes_itself<Shape>(batch_, rows.seq)) return;
    for (int row = batch_.cu_seqlens[rows.seq]; row < batch_.cu_seqlens[rows.seq + 1]; ++row) {
      prefetch_head<Shape>(key_of<Shape>(call_, row, rows.kv_head));
      prefetch_head<Shape>(value_of<Shape>(call_, row, rows.kv_head));
    }
  }

  void prepare_queries(const Rows& rows) {
    for (int r = 0; r < rows.count; ++r) {
      if (r + few_rows < rows.count) prefetch_head<Shape>(query(rows, r + few_rows));
      const Head<Shape> head = make_query(weights_, query(rows, r), batch_.positions[token_row(rows, r)]);
      Cache::prepare(head, local_.queries[r / tile_rows], r % tile_rows);
      values_ahead_.step(head_steps);
    }
  }

  // blocks: of the item.
  void attend_tiles(const Rows& item, int chunk_index, const Blocks& blocks) {
    for (int t = 0; t * tile_rows < item.count; ++t) {
      const Rows tile = tile_of(item, t);
      if (chunk_index < tile.first_chunk || chunk_index >= tile.end_chunk) continue;
      const bool is_first = chunk_index == tile.first_chunk;
      Part& part = local_.parts[is_first ? t : item_tiles];
      attend(tile, chunk_index, item.count <= tile_rows ? blocks : blocks_of(tile, chunk_index), local_.queries[t], part);
      if (!is_first) merge(local_.parts[t], part, tile.count);
    }
  }

  Blocks blocks_of(const Rows& rows) const { return blocks_of(rows, rows.first_chunk); }
  Blocks blocks_of(const Rows& rows, int chunk_index) const {
    const int origin = chunk_index * chunk;
    Blocks blocks;
    blocks.first = seen(rows, 0, origin).begin / block_size;
    blocks.count = (seen(rows, rows.count - 1, origin).end + block_size - 1) / block_size - blocks.first;
    for (int i = 0; i < blocks.count; ++i) {
      blocks.heads[i] = L::block(call_, rows.seq, origin / block_size + blocks.first + i, rows.kv_head);
    }
    return blocks;
  }

  // Of a chunk, while its rows are prepared, in so many steps, and its keys multiplied.
  void fetch_values(const Blocks& blocks, int64_t steps) {
    values_ahead_ = Fetch(blocks, Cache::values_at, Cache::head_bytes - Cache::values_at, steps + blocks.count * Cache::key_steps);
  }
  // The same where nobody asked for its keys: whole heads, two blocks' share of them at once.
  void fetch_both(const Blocks& blocks, int64_t steps) {
    values_ahead_ = Fetch(blocks, 0, Cache::head_bytes, steps + blocks.count * Cache::key_steps);
    values_ahead_.step(2 * Cache::key_steps);
  }
  // While `count` blocks of values before them are weighed and multiplied.
  void fetch_keys(const Blocks& blocks, int count, int rows) {
    keys_ahead_ = Fetch(blocks, 0, Cache::values_at, count * (Cache::value_steps + std::min(rows, tile_rows)));
  }

  // One tile over one chunk.
  void attend(const Rows& tile, int chunk_index, const Blocks& blocks, const typename Cache::Queries& queries, Part& part) {
    const int origin = chunk_index * chunk, rows = tile.count;
    const Positions first = seen(tile, 0, origin), last = seen(tile, rows - 1, origin);
    const int begin = blocks.first, end = begin + blocks.count;
    fill(local_.folds, rows, nothing);
    for (int b = begin; b < end; ++b) {
      float* scores = scores_at(local_.scores, b * block_size, 0);
      cache_.multiply_keys(queries, rows, blocks.heads[b - begin], values_ahead_, scores);
      const bool all_seen = last.begin <= b * block_size && (b + 1) * block_size <= first.end;
      Positions seen_rows[tile_rows];
      for (int r = 0; r < rows && !all_seen; ++r) seen_rows[r] = seen(tile, r, origin + b * block_size);
      fold_peaks<Shape>(scores, rows, all_seen ? nullptr : seen_rows, local_.folds);
    }
    for (int r = 0; r < rows; ++r) part.peak[r] = reduce_max(load(local_.folds[r]));
    fill(local_.folds, rows, 0);
    float* scores = scores_at(local_.scores, begin * block_size, 0);
    cache_.weigh(scores, rows, blocks, part.peak, local_.folds, keys_ahead_);
    for (int r = 0; r < rows; ++r) part.sum[r] = reduce_add(load(local_.folds[r]));
    cache_.multiply_values(scores, rows, blocks, keys_ahead_, part.out[0]);
  }

  // Of the powers that weigh a row's values, its head's sink among them, which has no value.
  float sum_with_sink(const Part& part, int r, int head) const {
    if constexpr (Shape::has_sinks) return part.sum[r] + std::exp2(weights_.sinks[head] * log2e - part.peak[r]);
    return part.sum[r];
  }

  void write(const Rows& tile, const Part& part) const {
    for (int r = 0; r < tile.count; ++r) {
      auto* out = call_.outputs[0].row<typename Shape::Out>(token_row(tile, r)) + head(tile, r) * Shape::head_dim;
      const f32x16 scale = f32x16::splat(1 / sum_with_sink(part, r, head(tile, r)));
      for_columns<Shape::head_dim>([&](int c, int used) { store(out + c, load(part.out[r] + c, used) * scale, used); });
    }
  }

  const Call& call_;
  const Batch& batch_;
  const Weights<Shape> weights_;
  Local& local_;
  Cache cache_;
  Fetch values_ahead_, keys_ahead_;  // of the chunk this thread is at; of the one after it
};

template <class Shape>
void run(const Call& call) {
  using Work = Items<Shape>;
  const Batch& batch = *call.batch;
  const int64_t num_tiles = Work::count(batch, tile_rows), enough = 4 * call.size;
  Attention<Shape> attention(call);
  if (num_tiles <= slots && num_tiles < enough) {
    if (call.rank == 0) attention.reset_slots();
    write_cache<Shape>(call, true);
    call.sync();
    return attention.run_chunks();
  }
  const int rows_per_item = Work::count(batch, item_tiles * tile_rows) < enough ? tile_rows : item_tiles * tile_rows;
  bool all_write = true;
  for (int s = 0; s < batch.num_seqs; ++s) all_write = all_write && writes_itself<Shape>(batch, s);
  if (!all_write) {
    write_cache<Shape>(call, false);
    call.sync();
  }
  attention.run_items(rows_per_item);
}

}  // namespace slipway::paged_attention
