// The work of a batch, shared out by tickets.
#pragma once
#include <algorithm>

#include "paged_attention/layout.hpp"

namespace slipway::paged_attention {

// Query rows (token, head of the group) of one sequence and KV head, and the chunks of positions that they see.
struct Rows {
  int seq, kv_head;
  int first, count;  // counted in the sequence
  int first_chunk, end_chunk;
  int chunks() const { return end_chunk - first_chunk; }
};

// The first query row of a sequence's KV head that is attended for, num_rows if none is: all rows are or, with Shape::only_wanted,
// those from the first token on whose logits are wanted.
template <class Shape>
int first_row(const Batch& batch, int seq) {
  if constexpr (!Shape::only_wanted) return 0;
  const int begin = batch.cu_seqlens[seq], end = batch.cu_seqlens[seq + 1];
  const int32_t *rows = batch.logit_rows, *behind = rows + batch.num_logit_rows, *wanted = std::lower_bound(rows, behind, begin);
  return ((wanted == behind ? end : std::min(*wanted, end)) - begin) * Layout<Shape>::group;
}

// Whether the work item of a sequence's KV head writes its keys and values itself: it is the only one, and there is one.
template <class Shape>
bool writes_itself(const Batch& batch, int seq) {
  const int rows = num_rows<Shape>(batch, seq);
  return rows <= few_rows && first_row<Shape>(batch, seq) < rows;
}

template <class Shape>
Rows make_rows(const Batch& batch, int seq, int kv_head, int first, int most) {
  constexpr int group = Layout<Shape>::group;
  const int count = std::min(most, num_rows<Shape>(batch, seq) - first);
  const int32_t* positions = batch.positions + batch.cu_seqlens[seq];
  const int begin = Shape::window ? std::max(0, positions[first / group] - Shape::window + 1) : 0;
  return {seq, kv_head, first, count, begin / chunk, positions[(first + count - 1) / group] / chunk + 1};
}

// The rows of all sequences and KV heads, `rows_per_item` at a time; a ticket for each item, or for each chunk of it.
template <class Shape>
class Items {
 public:
  Items(const Batch& batch, int rows_per_item, bool ticket_per_chunk)
      : batch_(batch), rows_per_item_(rows_per_item), ticket_per_chunk_(ticket_per_chunk) {
    enter();
  }

  static int64_t count(const Batch& batch, int rows_per_item) {
    int64_t items = 0;
    for (int s = 0; s < batch.num_seqs; ++s) {
      items += (num_rows<Shape>(batch, s) - first_row<Shape>(batch, s) + rows_per_item - 1) / rows_per_item;
    }
    return items * Shape::kv_heads;
  }

  // Moves on to the item of `ticket`, which never falls. False behind the last item.
  bool seek(int64_t ticket) {
    while (seq_ < batch_.num_seqs && ticket >= first_ticket_ + tickets()) {
      first_ticket_ += tickets();
      ++number_;
      next();
    }
    return seq_ < batch_.num_seqs;
  }

  const Rows& item() const { return item_; }
  int64_t number() const { return number_; }
  int64_t first_ticket() const { return first_ticket_; }

 private:
  int tickets() const { return ticket_per_chunk_ ? item_.chunks() : 1; }

  // One head's items follow each other: they share its blocks in the cache. The last, the longest, comes first.
  void next() {
    if (--part_ >= 0) return measure();
    if (++kv_head_ == Shape::kv_heads) kv_head_ = 0, ++seq_;
    enter();
  }

  void enter() {
    while (seq_ < batch_.num_seqs && first_row<Shape>(batch_, seq_) == num_rows<Shape>(batch_, seq_)) ++seq_;
    if (seq_ == batch_.num_seqs) return;
    first_row_ = first_row<Shape>(batch_, seq_);
    part_ = (num_rows<Shape>(batch_, seq_) - first_row_ - 1) / rows_per_item_;
    measure();
  }

  void measure() { item_ = make_rows<Shape>(batch_, seq_, kv_head_, first_row_ + part_ * rows_per_item_, rows_per_item_); }

  const Batch& batch_;
  const int rows_per_item_;
  const bool ticket_per_chunk_;
  int seq_ = 0, kv_head_ = 0, first_row_ = 0, part_ = 0;
  Rows item_{};
  int64_t number_ = 0, first_ticket_ = 0;
};

}  // namespace slipway::paged_attention
