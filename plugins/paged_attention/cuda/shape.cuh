// One attention layer: its shapes, where keys and values lie, and how threads find their rows.
//
// A KV block holds 32 tokens. Of each KV head its keys come first, K[token][dimension] with dimensions filled up to whole 32 by
// zeros and 16-byte pieces swapped by key_piece, then its values transposed, V[dimension][token]. So every operand of a matrix
// multiplication is 16 bytes in a row, and a head of a block one piece of memory:
//
// scores = Q K^T: thread (g, q) = (lane / 4, lane % 4) has dimensions 32 c + 8 q + 0..7 of queries g and g + 8, and of the keys of four
// tokens, 8 (g / 2) + 2 j + g % 2 for j = 0..3. Tile j of the scores then gives it tokens 8 q + 2 j and 8 q + 2 j + 1: over j, eight
// neighbours, which are the columns of P that it needs for P V, beside eight tokens of V's dimensions 8 n + g.
//
// In eight bits, numbers are codes times a scale of their token and head, float32 [keys, values][32 tokens] behind the values. Sixteen bytes
// are then two of those pieces: of keys 64 dimensions are filled up, and thread (g, q) has dimensions 64 c + 16 q + 0..15; of values,
// dimensions 8 n + g of two n lie side by side, V[n / 2][g][q][n % 2][8 tokens].
//
// Where prompts are multiplied by warpgroups (S::warpgroups), keys and values in bf16 lie as those read them from shared memory: keys of 64
// dimensions one block after the other, K[dimension / 64][token], dimensions filled up to whole 64, and pieces swapped as key_at and value_at say.
#pragma once
#include "slipway/cuda/bytes.cuh"

namespace slipway::cuda::paged_attention {

inline constexpr int block_tokens = 32, tile_rows = 16;

inline constexpr int up(int number, int multiple) { return (number + multiple - 1) / multiple * multiple; }

template <class S> struct Layout {
  static constexpr bool coded = !is_same<typename S::Cache, bf16>;   // S::Cache is bf16, or the code of eight bits
  static constexpr int number_bytes = coded ? 1 : 2;
  static constexpr int group = S::heads / S::kv_heads;               // query heads of a KV head
  static constexpr int key_columns = up(S::head_dim, S::warpgroups ? 64 : 64 / number_bytes);
  static constexpr int value_rows = coded ? up(S::head_dim, 16) : S::head_dim;
  static constexpr int key_bytes = block_tokens * key_columns * number_bytes, value_bytes = block_tokens * value_rows * number_bytes;  // of a KV head
  static constexpr int scale_bytes = coded ? 2 * block_tokens * 4 : 0;
  static constexpr int head_bytes = key_bytes + value_bytes + scale_bytes;
  static constexpr int64_t block_bytes = int64_t{head_bytes} * S::kv_heads;
};

// Where the 16-byte piece i of a token's key lies in its head. Of two neighbouring tokens' keys, four pieces each are read at once from
// different banks; warpgroups have an order of their own.
template <class S> inline int key_at(int token, int i) {
  constexpr int row_bytes = Layout<S>::key_columns * Layout<S>::number_bytes;
  if constexpr (S::warpgroups) return (i / 8 * block_tokens + token) * 128 + ((i ^ token) % 8) * 16;
  return token * row_bytes + (row_bytes > 64 ? i ^ (token & 1) << 2 : i) * 16;
}

// Where, behind the keys, tokens 8 i .. 8 i + 7 of a dimension lie; in bf16.
template <class S> inline int value_at(int dimension, int i) { return dimension * 64 + (S::warpgroups ? i ^ (dimension >> 1 & 3) : i) * 16; }

// Of keys, or of values, of a head of a block: [32 tokens].
template <class S> inline const float* scales_of(const std::byte* head, bool of_values) {
  return reinterpret_cast<const float*>(head + Layout<S>::key_bytes + Layout<S>::value_bytes) + of_values * block_tokens;
}

template <class S> inline std::byte* head_of(const Call& call, int block, int head) {
  return call.kv + block * Layout<S>::block_bytes + head * Layout<S>::head_bytes;
}

// Rotated and scaled queries, bf16 [tokens][heads][key_columns]: the last part of the scratch.
template <class S> inline bf16* query(const Call& call, int token, int head) {
  return reinterpret_cast<bf16*>(call.scratch + S::queries_at) + (int64_t{token} * S::heads + head) * Layout<S>::key_columns;
}

// What there is of them, in this order; null: there is not.
template <class S> struct Weights {
  const float *q_norm, *k_norm;  // [head_dim]
  const float* rope;             // [positions][2][rotary_dim / 2], cosines then sines
  const float* sinks;            // [heads]

  explicit Weights(const Call& call) {
    int next = 0;
    const auto take = [&](bool there) { return there ? reinterpret_cast<const float*>(call.weights[next++]) : nullptr; };
    q_norm = take(S::norms_q);
    k_norm = take(S::norms_k);
    rope = take(S::rotary_dim > 0);
    sinks = take(S::has_sinks);
  }
};

// The new tokens of a sequence, and those in its cache with them.
struct Sequence {
  int first, count, length;
  const int32_t* blocks;
};
inline Sequence sequence_of(const Batch& batch, int number) {
  const int first = batch.cu_seqlens[number];
  return {first, batch.cu_seqlens[number + 1] - first, batch.kv_lens[number], batch.block_table + int64_t{number} * batch.max_blocks};
}

}  // namespace slipway::cuda::paged_attention
