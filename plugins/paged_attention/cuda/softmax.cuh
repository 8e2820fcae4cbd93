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

// The sum of a row's powers with its head's sink, which has no value. In units of 2^maximum.
template <class S> inline float with_sink(const Weights<S>& weights, int head, float maximum, float sum) {
  if constexpr (S::has_sinks) return sum + exp2_approximate(weights.sinks[head] * log2_e - maximum);
  return sum;
}

template <class S> struct Rows {
  static constexpr int parts = Layout<S>::key_columns / 32, value_tiles = S::head_dim / 8;
  static constexpr bool coded = Layout<S>::coded;
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
    const int q = lane() % 4;
    return load_eight(queries[second] + (coded ? 64 * (c / 2) + 16 * q + 8 * (c % 2) : 32 * c + 8 * q));
  }

  // head: of a block that begins at position `first`. Positions from `length` on hold nothing yet.
  // visible: every row sees all of the block's tokens.
  void attend(const std::byte* head, int first, int length, bool visible) {
    const int q = lane() % 4;
    const bool ends = first + block_tokens > length;
    float scores[4][4];
    multiply_keys(head, scores);
    if constexpr (coded) {
      float scales[8];
      load_scales(head, false, scales);
#pragma unroll
      for (int j = 0; j < 4; ++j)
#pragma unroll
        for (int i = 0; i < 4; ++i) scores[j][i] *= scales[2 * j + i % 2];
    }
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
    float scales[8] = {};
    if constexpr (coded) {
      load_scales(head, true, scales);
      if (ends)
#pragma unroll
        for (int i = 0; i < 8; ++i) scales[i] = first + 8 * q + i < length ? scales[i] : 0;
    }
    weigh(scores, scales, weights);
    multiply_values(head + Layout<S>::key_bytes, weights, first + 8 * q, ends, length);
  }

 private:
  static Words<4> load_piece(const std::byte* from) {
    check_alignment(from, 16);
    return *reinterpret_cast<const Words<4>*>(from);
  }

  // Four neighbours as pairs of bf16: the m-th four of a piece, or of one of its halves.
  static void column_pairs(const Words<4>& piece, int half, int m, uint32_t (&b)[2]) {
    if constexpr (coded) {
      S::Cache::decode(piece.words[2 * half + m], b[0], b[1]);
    } else {
      b[0] = piece.words[2 * m];
      b[1] = piece.words[2 * m + 1];
    }
  }

  // Of the eight tokens whose scores this thread has.
  static void load_scales(const std::byte* head, bool of_values, float (&scales)[8]) {
    const auto* from = reinterpret_cast<const Words<4>*>(scales_of<S>(head, of_values) + 8 * (lane() % 4));
#pragma unroll
    for (int i = 0; i < 8; ++i) scales[i] = as_float(from[i / 4].words[i % 4]);
  }

  void multiply_keys(const std::byte* keys, float (&scores)[4][4]) const {
    const int g = lane() / 4, q = lane() % 4;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int token = 8 * (g / 2) + 2 * j + g % 2;
#pragma unroll
      for (int i = 0; i < 4; ++i) scores[j][i] = 0;
      Words<4> piece;
#pragma unroll(holds_queries ? parts : coded ? 2 : 1)
      for (int c = 0; c < parts; ++c) {
        if (!coded || c % 2 == 0) piece = load_piece(keys + key_at<S>(token, 4 * (coded ? c / 2 : c) + q));
        const Words<4> first = holds_queries ? held[0][c] : load_queries(0, c), second = holds_queries ? held[1][c] : load_queries(1, c);
#pragma unroll
        for (int m = 0; m < 2; ++m) {
          const uint32_t a[4] = {first.words[2 * m], second.words[2 * m], first.words[2 * m + 1], second.words[2 * m + 1]};
          uint32_t b[2];
          column_pairs(piece, coded ? c % 2 : 0, m, b);
          mma_bf16(scores[j], a, b);
        }
      }
    }
  }

  // Scores -> powers of two of them less the maximum so far, which what was summed before follows; times the scales of the values.
  void weigh(float (&scores)[4][4], const float (&scales)[8], uint32_t (&weights)[4][2]) {
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
        weights[j][i] = coded ? pack_bf16(low * scales[2 * j], high * scales[2 * j + 1]) : pack_bf16(low, high);
      }
    }
  }

  // ends: tokens from `end` on are taken as zeros, whatever the block holds of them: 0 * NaN would be NaN.
  void multiply_values(const std::byte* values, const uint32_t (&weights)[4][2], int first, bool ends, int end) {
    const int g = lane() / 4, q = lane() % 4;
    uint32_t kept[4];  // of a piece's words, the bits of tokens before `end`; of codes, the same two words twice
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if constexpr (coded) {
        kept[i] = 0;
#pragma unroll
        for (int k = 0; k < 4; ++k) kept[i] |= first + i % 2 * 4 + k < end ? 0xffu << 8 * byte_of(k) : 0u;
      } else {
        kept[i] = first + 2 * i + 1 < end ? 0xffffffffu : first + 2 * i < end ? 0xffffu : 0u;
      }
    }
    Words<4> piece;
#pragma unroll
    for (int n = 0; n < value_tiles; ++n) {
      if (!coded || n % 2 == 0) {
        piece = load_piece(values + (coded ? ((n / 2 * 8 + g) * 4 + q) * 16 : value_at<S>(8 * n + g, q)));
        if (ends)
#pragma unroll
          for (int i = 0; i < 4; ++i) piece.words[i] &= kept[i];
      }
#pragma unroll
      for (int m = 0; m < 2; ++m) {
        const uint32_t a[4] = {weights[2 * m][0], weights[2 * m][1], weights[2 * m + 1][0], weights[2 * m + 1][1]};
        uint32_t b[2];
        column_pairs(piece, coded ? n % 2 : 0, m, b);
        mma_bf16(outputs[n], a, b);
      }
    }
  }
};

}  // namespace slipway::cuda::paged_attention
