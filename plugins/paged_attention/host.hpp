// Causal attention of a ragged batch over a paged KV cache: decode, prefill, chunked prefill and verification alike.
//
// A tile of query rows reads its positions in chunks of 512 counted from position 0 of the sequence; chunks merge in
// order. A work item is one tile, or a few that read each chunk together while it is in the processor's cache. When
// there are few tiles, threads share a tile's chunks: tickets are claimed in order, and each thread waits for the chunk
// before its own to be merged.
//
// The keys and values of the step reach the cache before they are read: those of a sequence with few rows by the
// thread that has its item, as no other reads them in this step; all others in a phase of their own.
#pragma once
#include <algorithm>
#include <atomic>
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

  // Whole items to each thread, which claims one ahead: what it writes and reads first is on its way in good time.
  void run_items(int rows_per_item) {
    Items<Shape> items(batch_, rows_per_item, false);
    const auto claim = [&] {
      if (!items.seek(call_.tickets[1].claim(1))) return false;
      const Rows& item = items.item();
      if (writes_itself<Shape>(batch_, item.seq)) write_sequence(call_, weights_, item.seq, item.kv_head);
      return true;
    };
    for (bool claimed = claim(); claimed;) {
      const Rows item = items.item();
      claimed = claim();
      const Rows& next = claimed ? items.item() : item;
      prepare_queries(item);
      for (int chunk_index = item.first_chunk; chunk_index < item.end_chunk; ++chunk_index) {
        next_ = chunk_index + 1 < item.end_chunk ? first_heads(item, chunk_index + 1) : first_heads(next, next.first_chunk);
        attend_tiles(item, chunk_index);
      }
      for (int t = 0; t * tile_rows < item.count; ++t) write(tile_of(item, t), local_.parts[t]);
    }
  }

  // Chunks of tiles to each thread; fewer tiles than slots.
  void run_chunks() {
    Items<Shape> items(batch_, tile_rows, true);
    int64_t prepared = -1;
    for (int64_t ticket; items.seek(ticket = call_.tickets[1].claim(1));) {
      const Rows& tile = items.item();
      const int done = static_cast<int>(ticket - items.first_ticket());
      if (std::exchange(prepared, items.number()) != items.number()) prepare_queries(tile);
      next_ = first_heads(tile, std::min(tile.first_chunk + done + call_.size, tile.end_chunk - 1));
      attend(tile, tile.first_chunk + done, local_.queries[0], local_.parts[0]);
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
  using Next = Upcoming<Cache::keys_bytes>;
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

  void prepare_queries(const Rows& rows) {
    for (int r = 0; r < rows.count; ++r) {
      const std::byte* at = reinterpret_cast<const std::byte*>(query(rows, r));
      for (size_t i = 0; i < Shape::head_dim * sizeof(typename Shape::Query); i += 64) _mm_prefetch(at + i, _MM_HINT_T0);
    }
    for (int r = 0; r < rows.count; ++r) {
      const Head<Shape> head = make_query(weights_, query(rows, r), batch_.positions[token_row(rows, r)]);
      Cache::prepare(head, local_.queries[r / tile_rows], r % tile_rows);
    }
  }

  void attend_tiles(const Rows& item, int chunk_index) {
    for (int t = 0; t * tile_rows < item.count; ++t) {
      const Rows tile = tile_of(item, t);
      if (chunk_index < tile.first_chunk || chunk_index >= tile.end_chunk) continue;
      const bool is_first = chunk_index == tile.first_chunk;
      Part& part = local_.parts[is_first ? t : item_tiles];
      attend(tile, chunk_index, local_.queries[t], part);
      if (!is_first) merge(local_.parts[t], part, tile.count);
    }
  }

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

  Next first_heads(const Rows& rows, int chunk_index) const {
    const Blocks blocks = blocks_of(rows, chunk_index);
    Next first;
    for (int i = 0; i < first.count; ++i) first.heads[i] = blocks.heads[std::min(i, blocks.count - 1)];
    return first;
  }

  // What is read while the keys are that lie `fetch_ahead` behind those of a block: others' keys, or the first values.
  static const std::byte* after_keys(const Blocks& blocks, int block) {
    const int later = block + Next::count;
    if (later < blocks.count) return blocks.heads[later];
    return blocks.heads[std::min(later, 2 * blocks.count - 1) - blocks.count] + Cache::values_at;
  }

  // One tile over one chunk.
  void attend(const Rows& tile, int chunk_index, const typename Cache::Queries& queries, Part& part) {
    const int origin = chunk_index * chunk, rows = tile.count;
    const Positions first = seen(tile, 0, origin), last = seen(tile, rows - 1, origin);
    const Blocks blocks = blocks_of(tile, chunk_index);
    const int begin = blocks.first, end = begin + blocks.count;
    fill(local_.folds, rows, nothing);
    for (int b = begin; b < end; ++b) {
      float* scores = scores_at(local_.scores, b * block_size, 0);
      cache_.multiply_keys(queries, rows, blocks.heads[b - begin], after_keys(blocks, b - begin), scores);
      const bool all_seen = last.begin <= b * block_size && (b + 1) * block_size <= first.end;
      Positions seen_rows[tile_rows];
      for (int r = 0; r < rows && !all_seen; ++r) seen_rows[r] = seen(tile, r, origin + b * block_size);
      fold_peaks<Shape>(scores, rows, all_seen ? nullptr : seen_rows, local_.folds);
    }
    for (int r = 0; r < rows; ++r) part.peak[r] = reduce_max(load(local_.folds[r]));
    fill(local_.folds, rows, 0);
    float* scores = scores_at(local_.scores, begin * block_size, 0);
    cache_.weigh(scores, rows, blocks, part.peak, local_.folds);
    for (int r = 0; r < rows; ++r) part.sum[r] = reduce_add(load(local_.folds[r]));
    cache_.multiply_values(scores, rows, blocks, next_, part.out[0]);
  }

  void write(const Rows& tile, const Part& part) const {
    for (int r = 0; r < tile.count; ++r) {
      auto* out = call_.outputs[0].row<typename Shape::Out>(token_row(tile, r)) + head(tile, r) * Shape::head_dim;
      const f32x16 scale = f32x16::splat(1 / part.sum[r]);
      for_columns<Shape::head_dim>([&](int c, int used) { store(out + c, load(part.out[r] + c, used) * scale, used); });
    }
  }

  const Call& call_;
  const Batch& batch_;
  const Weights<Shape> weights_;
  Local& local_;
  Cache cache_;
  Next next_;  // of this thread, after the chunk it is at
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
