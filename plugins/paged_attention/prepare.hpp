// Norm and rotation: queries for the multiplier, keys and values of the step into their KV blocks.
#pragma once
#include <algorithm>

#include "paged_attention/head.hpp"
#include "paged_attention/items.hpp"

namespace slipway::paged_attention {

inline constexpr int run_tokens = 16;  // of one work item: a line of a key block

// Weights in the order of the call: those that the shape has.
template <class Shape>
struct Weights {
  const float *q_norm = nullptr, *k_norm = nullptr, *rope = nullptr, *sinks = nullptr;
  explicit Weights(const Call& call) {
    const std::byte* const* next = call.weights;
    if (Shape::norms_q) q_norm = reinterpret_cast<const float*>(*next++);
    if (Shape::norms_k) k_norm = reinterpret_cast<const float*>(*next++);
    if (Shape::rotary_dim) rope = reinterpret_cast<const float*>(*next++);
    if (Shape::has_sinks) sinks = reinterpret_cast<const float*>(*next++);
  }
  const float* rotation(int position) const { return rope + int64_t{position} * Shape::rotary_dim; }
};

// A token of the batch, with its place in its sequence.
struct Token {
  int row, seq, position;
  int slot() const { return position % block_size; }
  int block() const { return position / block_size; }
};

// Walks the tokens of the batch from `row` on.
class Tokens {
 public:
  Tokens(const Batch& batch, int row) : batch_(batch), row_(row) {
    seq_ = std::upper_bound(batch.cu_seqlens, batch.cu_seqlens + batch.num_seqs, row) - batch.cu_seqlens - 1;
  }
  Token next() {
    while (row_ >= batch_.cu_seqlens[seq_ + 1]) ++seq_;
    const Token token{row_, seq_, batch_.positions[row_]};
    ++row_;
    return token;
  }

 private:
  const Batch& batch_;
  int row_, seq_;
};

// Slots behind a sequence's end hold zeros: what a block held before may be NaN, and zero times NaN would reach the sums.
template <class Shape, class Store>
void store_and_clear(const Call& call, const Token& token, int kv_head, const Head<Shape>& head, Store store) {
  std::byte* block = Layout<Shape>::block(call, token.seq, token.block(), kv_head);
  store(head, block, token.slot());
  const Batch& batch = *call.batch;
  const bool is_last = token.row + 1 == batch.cu_seqlens[token.seq + 1];
  const bool is_new = batch.positions[batch.cu_seqlens[token.seq]] <= token.block() * block_size;
  if (!is_last || !is_new) return;
  for (int slot = token.slot() + 1; slot < block_size; ++slot) store(Head<Shape>(), block, slot);
}

// Of a row of the step.
template <class Shape>
const typename Shape::Key* key_of(const Call& call, int row, int kv_head) {
  return call.inputs[1].row<typename Shape::Key>(row) + kv_head * Shape::head_dim;
}
template <class Shape>
const typename Shape::Value* value_of(const Call& call, int row, int kv_head) {
  return call.inputs[2].row<typename Shape::Value>(row) + kv_head * Shape::head_dim;
}

template <class Shape, class T>
void prefetch_head(const T* at) {
  for (int i = 0; i < Shape::head_dim; i += 64 / sizeof(T)) prefetch_line(at + i);
}

// Scaled so that scores come in units of log2.
template <class Shape>
Head<Shape> make_query(const Weights<Shape>& weights, const typename Shape::Query* in, int position) {
  Head<Shape> q(in);
  if constexpr (Shape::norms_q) q.normalize(weights.q_norm);
  if constexpr (Shape::rotary_dim > 0) q.rotate(weights.rotation(position));
  for (f32x16& x : q.x) x = x * f32x16::splat(Shape::scale * log2e);
  return q;
}

template <class Shape>
void write_key(const Call& call, const Weights<Shape>& weights, const Token& token, int kv_head) {
  Head<Shape> k(key_of<Shape>(call, token.row, kv_head));
  if constexpr (Shape::norms_k) k.normalize(weights.k_norm);
  if constexpr (Shape::rotary_dim > 0) k.rotate(weights.rotation(token.position));
  store_and_clear(call, token, kv_head, k, Shape::Cache::store_key);
}

template <class Shape>
void write_value(const Call& call, const Token& token, int kv_head) {
  const Head<Shape> v(value_of<Shape>(call, token.row, kv_head));
  store_and_clear(call, token, kv_head, v, Shape::Cache::store_value);
}

// The tokens of one sequence, in one head.
template <class Shape>
void write_sequence(const Call& call, const Weights<Shape>& weights, int seq, int kv_head) {
  const Batch& batch = *call.batch;
  for (int row = batch.cu_seqlens[seq]; row < batch.cu_seqlens[seq + 1]; ++row) {
    const Token token{row, seq, batch.positions[row]};
    write_key(call, weights, token, kv_head);
    write_value<Shape>(call, token, kv_head);
  }
}

// The tokens of all sequences, or of those whose work items do not write them: heads of 16 tokens at a time, first those of k, then
// of v.
template <class Shape>
void write_cache(const Call& call, bool of_all) {
  constexpr int heads = 2 * Shape::kv_heads;
  const Weights<Shape> weights(call);
  const int num_tokens = call.batch->num_tokens;
  const int64_t items = int64_t{(num_tokens + run_tokens - 1) / run_tokens} * heads;
  const int64_t grain = std::max<int64_t>(1, items / (8 * call.size));
  for (int64_t begin; (begin = call.tickets[0].claim(grain)) < items;) {
    for (int64_t item = begin; item < std::min(begin + grain, items); ++item) {
      const int head = static_cast<int>(item % heads), first = static_cast<int>(item / heads) * run_tokens;
      const auto each_token = [&](auto body) {
        Tokens tokens(*call.batch, first);
        for (int row = first; row < std::min(first + run_tokens, num_tokens); ++row) {
          const Token token = tokens.next();
          if (of_all || !writes_itself<Shape>(*call.batch, token.seq)) body(token);
        }
      };
      if (head < Shape::kv_heads) {
        each_token([&](const Token& token) { prefetch_head<Shape>(key_of<Shape>(call, token.row, head)); });
        each_token([&](const Token& token) { write_key(call, weights, token, head); });
      } else {
        each_token([&](const Token& token) { prefetch_head<Shape>(value_of<Shape>(call, token.row, head - Shape::kv_heads)); });
        each_token([&](const Token& token) { write_value<Shape>(call, token, head - Shape::kv_heads); });
      }
    }
  }
}

}  // namespace slipway::paged_attention
