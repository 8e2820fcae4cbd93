// Causal attention of a ragged batch over a paged KV cache: decode, prefill, chunked prefill and verification alike.
//
// A work item is a tile of query rows (token, head of the group) of one sequence and KV head. It reads its positions in
// chunks of 512 counted from position 0 of the sequence; chunks merge in order. When there are few items, threads share
// an item's chunks: tickets are claimed in order, and each thread waits for the chunk before its own to be merged.
#pragma once
#include <algorithm>
#include <atomic>

#include "paged_attention/layout.hpp"
#include "paged_attention/multiply.hpp"
#include "paged_attention/prepare.hpp"
#include "paged_attention/softmax.hpp"

namespace slipway::paged_attention {

struct Item {
  int seq, kv_head;
  int first_row, rows;           // query rows, counted in the sequence
  int first_chunk, chunks;
};

// The items of the batch one after the other; `chunk_tickets`: a ticket for each chunk instead of one for each item.
template <class Shape>
class Items {
 public:
  Items(const Call& call, bool chunk_tickets) : batch_(*call.batch), chunk_tickets_(chunk_tickets) { measure(); }

  static int64_t count(const Batch& batch) {
    int64_t items = 0;
    for (int s = 0; s < batch.num_seqs; ++s) items += tiles(batch, s);
    return items * Shape::kv_heads;
  }

  // Moves on to the item that holds `ticket`, which never falls. False behind the last item.
  bool seek(int64_t ticket) {
    while (item_.seq < batch_.num_seqs && ticket >= first_ticket_ + tickets()) {
      first_ticket_ += tickets();
      ++number_;
      next();
    }
    return item_.seq < batch_.num_seqs;
  }

  const Item& item() const { return item_; }
  int64_t number() const { return number_; }
  int64_t first_ticket() const { return first_ticket_; }

 private:
  static constexpr int group = Layout<Shape>::group;

  static int tokens(const Batch& batch, int seq) { return batch.cu_seqlens[seq + 1] - batch.cu_seqlens[seq]; }
  static int tiles(const Batch& batch, int seq) { return (tokens(batch, seq) * group + tile_rows - 1) / tile_rows; }
  int64_t tickets() const { return item_.seq == batch_.num_seqs ? 0 : chunk_tickets_ ? item_.chunks : 1; }

  // Tiles of one head follow each other: they share its blocks in the cache. The last tile, the longest, comes first.
  void next() {
    if (--tile_ >= 0) return measure();
    if (++item_.kv_head == Shape::kv_heads) item_.kv_head = 0, ++item_.seq;
    tile_ = -1;
    measure();
  }

  void measure() {
    while (item_.seq < batch_.num_seqs && tokens(batch_, item_.seq) == 0) ++item_.seq;
    if (item_.seq == batch_.num_seqs) return;
    if (tile_ < 0) tile_ = tiles(batch_, item_.seq) - 1;
    item_.first_row = tile_ * tile_rows;
    item_.rows = std::min(tile_rows, tokens(batch_, item_.seq) * group - item_.first_row);
    const int32_t* positions = batch_.positions + batch_.cu_seqlens[item_.seq];
    const int begin = Shape::window ? std::max(0, positions[item_.first_row / group] - Shape::window + 1) : 0;
    item_.first_chunk = begin / chunk;
    item_.chunks = positions[(item_.first_row + item_.rows - 1) / group] / chunk + 1 - item_.first_chunk;
  }

  const Batch& batch_;
  const bool chunk_tickets_;
  Item item_{};
  int tile_ = -1;
  int64_t number_ = 0, first_ticket_ = 0;
};

template <class Shape>
class Attention {
 public:
  using L = Layout<Shape>;
  using Part = State<Shape::head_dim>;

  explicit Attention(const Call& call)
      : call_(call), batch_(*call.batch), scores_(reinterpret_cast<float*>(call.local)),
        parts_(reinterpret_cast<Part*>(scores_ + chunk / lanes * score_stride)) {}

  // Whole items to each thread.
  void run_items() {
    Items<Shape> items(call_, false);
    while (items.seek(call_.tickets[1].claim(1))) {
      const Item& item = items.item();
      attend(item, item.first_chunk, parts_[0]);
      for (int c = 1; c < item.chunks; ++c) {
        attend(item, item.first_chunk + c, parts_[1]);
        merge(parts_[0], parts_[1], item.rows);
      }
      write(item, parts_[0]);
    }
  }

  // Chunks of items to each thread; fewer items than slots.
  void run_chunks() {
    Items<Shape> items(call_, true);
    for (int64_t ticket; items.seek(ticket = call_.tickets[1].claim(1));) {
      const Item& item = items.item();
      const int c = static_cast<int>(ticket - items.first_ticket());
      attend(item, item.first_chunk + c, parts_[0]);
      Slot& slot = slots_of(call_)[items.number()];
      for (Backoff backoff; slot.merged.load(std::memory_order_acquire) != c;) backoff();
      if (c == 0) copy(slot.part, parts_[0], item.rows);
      else merge(slot.part, parts_[0], item.rows);
      if (c + 1 == item.chunks) write(item, slot.part);
      slot.merged.store(c + 1, std::memory_order_release);
    }
  }

  static void reset_slots(const Call& call) {
    for (int i = 0; i < slots; ++i) slots_of(call)[i].merged.store(0, std::memory_order_relaxed);
  }

 private:
  struct alignas(64) Slot {
    std::atomic<int> merged;  // chunks
    alignas(64) Part part;
  };

  static Slot* slots_of(const Call& call) {
    return reinterpret_cast<Slot*>(L::query(call, Shape::kv_heads, 0));
  }

  static void copy(Part& into, const Part& part, int rows) {
    std::memcpy(into.peak, part.peak, sizeof into.peak);
    std::memcpy(into.sum, part.sum, sizeof into.sum);
    std::memcpy(into.out, part.out, rows * sizeof into.out[0]);
  }

  int token_row(const Item& item, int r) const { return batch_.cu_seqlens[item.seq] + (item.first_row + r) / L::group; }

  // Positions that query row r of the item sees, counted from position `origin`.
  Positions seen(const Item& item, int r, int origin) const {
    const int position = batch_.positions[token_row(item, r)];
    const int begin = Shape::window ? position - Shape::window + 1 : 0;
    return {std::max(begin - origin, 0), std::min(position + 1 - origin, chunk)};
  }

  // The item's rows over one chunk.
  void attend(const Item& item, int chunk_index, Part& part) {
    const int origin = chunk_index * chunk;
    const int begin = seen(item, 0, origin).begin / block_size;
    const int end = (seen(item, item.rows - 1, origin).end + block_size - 1) / block_size;
    const Factor* queries = L::query(call_, item.kv_head, int64_t{batch_.cu_seqlens[item.seq]} * L::group + item.first_row);
    const std::byte* values[chunk / block_size];
    for (int b = begin; b < end; ++b) {
      const std::byte* keys = L::block(call_, item.seq, origin / block_size + b, item.kv_head);
      values[b - begin] = keys + L::keys_bytes;
      multiply_keys<Shape>(queries, item.rows, keys, scores_at(scores_, b * block_size, 0));
    }
    for (int r = 0; r < item.rows; ++r) {
      const Positions range = seen(item, r, origin);
      if (range.begin < range.end) {
        float* row = scores_at(scores_, 0, r);
        part.peak[r] = find_peak<Shape>(row, range);
        part.sum[r] = exponentiate<Shape>(row, range, {begin * block_size, end * block_size}, part.peak[r]);
      } else {
        part.peak[r] = nothing;
      }
    }
    multiply_values<Shape>(scores_at(scores_, begin * block_size, 0), item.rows, values, end - begin, part.out[0]);
  }

  void write(const Item& item, const Part& part) const {
    for (int r = 0; r < item.rows; ++r) {
      const int head = item.kv_head * L::group + (item.first_row + r) % L::group;
      auto* out = call_.outputs[0].row<typename Shape::Out>(token_row(item, r)) + head * Shape::head_dim;
      const f32x16 scale = f32x16::splat(1 / part.sum[r]);
      for_columns<Shape::head_dim>([&](int c, int used) { store(out + c, load(part.out[r] + c, used) * scale, used); });
    }
  }

  const Call& call_;
  const Batch& batch_;
  float* scores_;
  Part* parts_;    // [2]
};

template <class Shape>
void run(const Call& call) {
  if (call.rank == 0) Attention<Shape>::reset_slots(call);
  prepare<Shape>(call);
  call.sync();
  [[maybe_unused]] const Tiles tiles;
  const int64_t items = Items<Shape>::count(*call.batch);
  Attention<Shape> attention(call);
  if (items <= slots && items < 4 * call.size) attention.run_chunks();
  else attention.run_items();
}

}  // namespace slipway::paged_attention
