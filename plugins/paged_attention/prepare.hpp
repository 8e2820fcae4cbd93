// First phase: norm and rotation; queries to the shared scratch, keys and values to their KV blocks.
#pragma once
#include <algorithm>
#include <cmath>

#include "paged_attention/layout.hpp"

namespace slipway::paged_attention {

inline constexpr int run_tokens = 16;  // of one work item: a line of a key block

// Weights in the order of the call: those that the shape has.
template <class Shape>
struct Weights {
  const float *q_norm = nullptr, *k_norm = nullptr, *rope = nullptr;
  explicit Weights(const Call& call) {
    const std::byte* const* next = call.weights;
    if (Shape::norms_q) q_norm = reinterpret_cast<const float*>(*next++);
    if (Shape::norms_k) k_norm = reinterpret_cast<const float*>(*next++);
    if (Shape::rotary_dim) rope = reinterpret_cast<const float*>(*next++);
  }
  const float* rotation(int position) const { return rope + int64_t{position} * Shape::rotary_dim; }
};

// One head of one token in float32, zero from head_dim on.
template <class Shape>
struct Head {
  alignas(64) float x[Layout<Shape>::depth] = {};

  template <class In>
  explicit Head(const In* in) {
    for_columns<Shape::head_dim>([&](int c, int used) { store(x + c, load(in + c, used), used); });
  }

  void normalize(const float* __restrict weight) {
    f32x16 squares = f32x16::splat(0);
    for (int c = 0; c < Layout<Shape>::depth; c += 16) squares = fma(load(x + c), load(x + c), squares);
    const f32x16 scale = f32x16::splat(1 / std::sqrt(reduce_add(squares) / Shape::head_dim + Shape::norm_eps));
    for_columns<Shape::head_dim>([&](int c, int used) { store(x + c, load(x + c) * scale * load(weight + c, used)); });
  }

  void rotate(const float* __restrict cos_sin) {
    constexpr int half = Shape::rotary_dim / 2;
    for (int i = 0; i < half; ++i) {
      const float cos = cos_sin[i], sin = cos_sin[half + i], first = x[i], second = x[half + i];
      x[i] = first * cos - second * sin;
      x[half + i] = second * cos + first * sin;
    }
  }

  // Columns 2i and 2i + 1 in bfloat16, as one word.
  void pairs(uint32_t* out) const {
    for (int c = 0; c < Layout<Shape>::depth; c += 16) store(reinterpret_cast<bf16*>(out) + c, load(x + c));
  }
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

template <class Shape>
void write_key(const uint32_t* pairs, std::byte* block, int slot) {
  uint32_t* out = reinterpret_cast<uint32_t*>(block + slot / 16 * Layout<Shape>::keys_bytes / 2) + slot % 16;
  for (int i = 0; i < Shape::head_dim / 2; ++i) out[i * 16] = pairs[i];
}

template <class Shape>
void write_value(const uint32_t* pairs, std::byte* block, int slot) {
  uint16_t* out = reinterpret_cast<uint16_t*>(block + Layout<Shape>::keys_bytes) + slot / 2 * Shape::head_dim * 2 + slot % 2;
  for (int i = 0; i < Shape::head_dim / 2; ++i) out[i * 4] = pairs[i], out[i * 4 + 2] = pairs[i] >> 16;
}

// Slots behind a sequence's end hold zeros: what a block held before may be NaN, and zero times NaN would reach the sums.
template <class Shape, class Write>
void write_and_clear(const Batch& batch, const Token& token, const uint32_t* pairs, std::byte* block, Write write) {
  constexpr uint32_t zeros[Layout<Shape>::depth / 2] = {};
  write(pairs, block, token.slot());
  const int first_row = batch.cu_seqlens[token.seq];
  const bool is_last = token.row + 1 == batch.cu_seqlens[token.seq + 1];
  const bool is_new = batch.positions[first_row] <= token.block() * block_size;
  if (!is_last || !is_new) return;
  for (int slot = token.slot() + 1; slot < block_size; ++slot) write(zeros, block, slot);
}

template <class Shape>
void prepare_query(const Call& call, const Weights<Shape>& weights, const Token& token, int head) {
  using L = Layout<Shape>;
  Head<Shape> q(call.inputs[0].row<typename Shape::Query>(token.row) + head * Shape::head_dim);
  if constexpr (Shape::norms_q) q.normalize(weights.q_norm);
  if constexpr (Shape::rotary_dim > 0) q.rotate(weights.rotation(token.position));
  Factor* out = L::query(call, head / L::group, int64_t{token.row} * L::group + head % L::group);
  const f32x16 scale = f32x16::splat(Shape::scale * log2e);
  for (int c = 0; c < L::depth; c += 16) store(out + c, round_to_bf16(load(q.x + c) * scale));
}

template <class Shape>
void prepare_key(const Call& call, const Weights<Shape>& weights, const Token& token, int kv_head) {
  Head<Shape> k(call.inputs[1].row<typename Shape::Key>(token.row) + kv_head * Shape::head_dim);
  if constexpr (Shape::norms_k) k.normalize(weights.k_norm);
  if constexpr (Shape::rotary_dim > 0) k.rotate(weights.rotation(token.position));
  alignas(64) uint32_t pairs[Layout<Shape>::depth / 2];
  k.pairs(pairs);
  write_and_clear<Shape>(*call.batch, token, pairs, Layout<Shape>::block(call, token.seq, token.block(), kv_head), write_key<Shape>);
}

template <class Shape>
void prepare_value(const Call& call, const Token& token, int kv_head) {
  const Head<Shape> v(call.inputs[2].row<typename Shape::Value>(token.row) + kv_head * Shape::head_dim);
  alignas(64) uint32_t pairs[Layout<Shape>::depth / 2];
  v.pairs(pairs);
  write_and_clear<Shape>(*call.batch, token, pairs, Layout<Shape>::block(call, token.seq, token.block(), kv_head), write_value<Shape>);
}

// Heads of 16 tokens at a time: first those of q, then of k, then of v.
template <class Shape>
void prepare(const Call& call) {
  constexpr int heads = Shape::heads + 2 * Shape::kv_heads;
  const Weights<Shape> weights(call);
  const int num_tokens = call.batch->num_tokens;
  const int64_t items = int64_t{(num_tokens + run_tokens - 1) / run_tokens} * heads;
  const int64_t grain = std::max<int64_t>(1, items / (8 * call.size));
  for (int64_t begin; (begin = call.tickets[0].claim(grain)) < items;) {
    for (int64_t item = begin; item < std::min(begin + grain, items); ++item) {
      const int head = static_cast<int>(item % heads), first = static_cast<int>(item / heads) * run_tokens;
      Tokens tokens(*call.batch, first);
      for (int row = first; row < std::min(first + run_tokens, num_tokens); ++row) {
        const Token token = tokens.next();
        if (head < Shape::heads) prepare_query(call, weights, token, head);
        else if (head < Shape::heads + Shape::kv_heads) prepare_key(call, weights, token, head - Shape::heads);
        else prepare_value<Shape>(call, token, head - Shape::heads - Shape::kv_heads);
      }
    }
  }
}

}  // namespace slipway::paged_attention
