// Sixteen query rows of a warp against one KV block after the other, with a running maximum (FlashAttention's online softmax).
#pragma once
#include "paged_attention/cuda/shape.cuh"

namespace slipway::cuda::paged_attention {

// The sum over the four threads that share rows.
inline float quad_sum(float x) {
  x += __shfl_xor_sync(~0u, x, 1);
  return x + __shfl_xor_sync(~0u, x, 2);
}
inline float quad_max(float x) {
  x = max(x, __shfl_xor_sync(~0u, x, 1));
  return max(x, __shfl_xor_sync(~0u, x, 2));
}

template <class S> struct Rows {
  static constexpr int parts = Layout<S>::key_columns / 32, value_tiles = S::head_dim / 8;
  static constexpr bool holds_queries = S::head_dim <= 128;  // else registers do not suffice, and L1 has them

  const bf16* queries[2];       // of rows g and g + 8, null: there is none
  Words<4> held[2][parts];
  int positions[2];
  float outputs[value_tiles][4] = {};
  float maxima[2], sums[2];     // of exponents to the base of 2; sums are this thread's share

  // row: of the sixteen, 0 .. count - 1. A row is a token and one of the query heads that share the KV head.
  void begin(const Call& call, const Sequence& of, int kv_head, int first_row, int count) {
    constexpr int group = Layout<S>::group;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int in_tile = lane() / 4 + 8 * i, row = first_row + in_tile, token = of.first + row / group;
      const bool there = in_tile < count;
      queries[i] = there ? query<S>(call, token, kv_head * group + row % group) : nullptr;
      positions[i] = there ? call.batch->positions[token] : -1;
      maxima[i] = -infinity();
      sums[i] = 0;
      if constexpr (holds_queries)
#pragma unroll
        for (int c = 0; c < parts; ++c) held[i][c] = load_queries(i, c);
    }
  }

  Words<4> load_queries(int second, int c) const {
    if (!queries[second]) return {{0, 0, 0, 0}};
    return load_eight(queries[second] + 32 * c + 8 * (lane() % 4));
  }

  // keys, values: of one head of a block that begins at position `first`. Positions from `length` on hold nothing yet.
  // visible: every row sees all of the block's tokens.
  void attend(const std::byte* keys, const std::byte* values, int first, int length, bool visible) {
    const int q = lane() % 4;
    float scores[4][4];
    multiply_keys(keys, scores);
#pragma unroll
    for (int j = 0; j < 4; ++j)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        float& score = scores[j][i];
        if constexpr (S::softcap > 0) score = S::softcap * log2_e * tanhf(score);
        const int distance = positions[i / 2] - (first + 8 * q + 2 * j + i % 2);
        if (!visible && (distance < 0 || (S::window > 0 && distance >= S::window))) score = -infinity();
      }
    uint32_t weights[4][2];  // [tile][row g, g + 8]
    weigh(scores, weights);
    multiply_values(values, weights, first + 8 * q, first + block_tokens > length, length);
  }

 private:
  void multiply_keys(const std::byte* keys, float (&scores)[4][4]) const {
    const int g = lane() / 4, q = lane() % 4;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int token = 8 * (g / 2) + 2 * j + g % 2;
      const bf16* key = reinterpret_cast<const bf16*>(keys) + token * Layout<S>::key_columns;
#pragma unroll
      for (int i = 0; i < 4; ++i) scores[j][i] = 0;
#pragma unroll(holds_queries ? parts : 1)
      for (int c = 0; c < parts; ++c) {
        const Words<4> k = load_eight(key + 8 * key_piece<S>(token, 4 * c + q));
        const Words<4> first = holds_queries ? held[0][c] : load_queries(0, c), second = holds_queries ? held[1][c] : load_queries(1, c);
#pragma unroll
        for (int m = 0; m < 2; ++m) {
          const uint32_t a[4] = {first.words[2 * m], second.words[2 * m], first.words[2 * m + 1], second.words[2 * m + 1]};
          const uint32_t b[2] = {k.words[2 * m], k.words[2 * m + 1]};
          mma_bf16(scores[j], a, b);
        }
      }
    }
  }

  // Scores -> powers of two of them less the maximum so far, which what was summed before follows.
  void weigh(float (&scores)[4][4], uint32_t (&weights)[4][2]) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      float largest = maxima[i];
#pragma unroll
      for (int j = 0; j < 4; ++j) largest = max(largest, max(scores[j][2 * i], scores[j][2 * i + 1]));
      largest = quad_max(largest);
      const float from = largest == -infinity() ? 0 : largest;  // a row that has seen nothing: powers of -inf are 0
      const float decay = exp2_approximate(maxima[i] - from);
      maxima[i] = largest;
      sums[i] *= decay;
#pragma unroll
      for (int n = 0; n < value_tiles; ++n) outputs[n][2 * i] *= decay, outputs[n][2 * i + 1] *= decay;
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const float low = exp2_approximate(scores[j][2 * i] - from), high = exp2_approximate(scores[j][2 * i + 1] - from);
        sums[i] += low + high;
        weights[j][i] = pack_bf16(low, high);
      }
    }
  }

  // ends: tokens from `end` on are taken as zeros, whatever the block holds of them: 0 * NaN would be NaN.
  void multiply_values(const std::byte* values, const uint32_t (&weights)[4][2], int first, bool ends, int end) {
    const int g = lane() / 4, q = lane() % 4;
#pragma unroll
    for (int n = 0; n < value_tiles; ++n) {
      Words<4> v = load_eight(reinterpret_cast<const bf16*>(values) + (8 * n + g) * block_tokens + 8 * q);
      if (ends)
#pragma unroll
        for (int i = 0; i < 4; ++i) v.words[i] &= first + 2 * i + 1 < end ? 0xffffffffu : first + 2 * i < end ? 0xffffu : 0u;
#pragma unroll
      for (int m = 0; m < 2; ++m) {
        const uint32_t a[4] = {weights[2 * m][0], weights[2 * m][1], weights[2 * m + 1][0], weights[2 * m + 1][1]};
        const uint32_t b[2] = {v.words[2 * m], v.words[2 * m + 1]};
        mma_bf16(outputs[n], a, b);
      }
    }
  }
};

}  // namespace slipway::cuda::paged_attention
