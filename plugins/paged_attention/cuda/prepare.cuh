// Queries and keys normalised and rotated; queries scaled, into scratch; keys and values into the cache.
#pragma once
#include "paged_attention/cuda/shape.cuh"

namespace slipway::cuda::paged_attention {

inline constexpr int prepare_warps = 4, prepare_threads = 32 * prepare_warps;

template <class S> struct PrepareShared {
  float vectors[prepare_warps][S::head_dim];
};

// What the scores are multiplied by before they are raised to powers of two, or capped.
template <class S> inline constexpr float query_scale() { return S::softcap > 0 ? S::scale / S::softcap : S::scale * log2_e; }

inline int sequence_with(const Batch& batch, int token) {
  int low = 0, high = batch.num_seqs;  // it begins at or before the token; after it
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    (batch.cu_seqlens[middle] <= token ? low : high) = middle;
  }
  return low;
}

// A vector of head_dim in shared memory -> normalised by its warp. weight: [head_dim].
template <class S> inline void normalize(float* vector, const float* weight) {
  float squares = 0;
  for (int i = lane(); i < S::head_dim; i += 32) squares += vector[i] * vector[i];
  const float scale = inverse_sqrt(warp_sum(squares) / S::head_dim + S::norm_eps);
  for (int i = lane(); i < S::head_dim; i += 32) vector[i] *= scale * weight[i];
  __syncwarp();
}

template <class S> inline float rotated(const float* vector, int i, const float* cosines) {
  if (i >= S::rotary_dim) return vector[i];
  constexpr int half = S::rotary_dim / 2;
  const int pair = S::interleaved ? i / 2 : i % (half ? half : 1), second = S::interleaved ? i % 2 : i >= half;
  const float x = vector[S::interleaved ? 2 * pair : pair], y = vector[S::interleaved ? 2 * pair + 1 : half + pair];
  return second ? y * cosines[pair] + x * cosines[half + pair] : x * cosines[pair] - y * cosines[half + pair];
}

template <class S, class In> inline void load_vector(const Operand& of, int token, int head, float* vector) {
  const In* from = of.row<In>(token) + head * S::head_dim;
  for (int i = lane(); i < S::head_dim; i += 32) vector[i] = to_float(from[i]);
  __syncwarp();
}

// Writes the scale with which the largest of a token's numbers has the largest code; returns what makes numbers codes.
template <class S, class Value> inline float write_scale(Value value, std::byte* head, int slot, bool of_values) {
  float largest = 0;
  for (int i = lane(); i < S::head_dim; i += 32) largest = larger_or_nan(largest, fabsf(value(i)));
  largest = warp_reduce(largest, larger_or_nan);
  if (lane() == 0) const_cast<float*>(scales_of<S>(head, of_values))[slot] = scale_of_codes<typename S::Cache>(largest);
  return codes_per_unit<typename S::Cache>(largest);
}

template <class S, class Value> inline void write_key(Value value, std::byte* head, int slot) {
  if constexpr (!Layout<S>::coded) {
    for (int i = lane(); i < Layout<S>::key_columns; i += 32)
      store(reinterpret_cast<bf16*>(head + key_at<S>(slot, i / 8)) + i % 8, i < S::head_dim ? value(i) : 0);
  } else {
    const float inverse = write_scale<S>(value, head, slot, false);
    for (int word = lane(); word < Layout<S>::key_columns / 4; word += 32) {
      uint32_t four = 0;
      for (int i = 0; i < 4; ++i) four |= S::Cache::encode(4 * word + i < S::head_dim ? value(4 * word + i) * inverse : 0) << 8 * byte_of(i);
      *reinterpret_cast<uint32_t*>(head + key_at<S>(slot, word / 4) + word % 4 * 4) = four;
    }
  }
}

// is_last: of the sequence. For warpgroups its block holds zeros behind it: a weight of 0 does not take a NaN away.
template <class S, class Value> inline void write_value(Value value, std::byte* head, int slot, bool is_last) {
  std::byte* to = head + Layout<S>::key_bytes;
  const auto at = [&](int i, int of) { return reinterpret_cast<bf16*>(to + value_at<S>(i, of / 8)) + of % 8; };
  if constexpr (!Layout<S>::coded) {
    for (int i = lane(); i < S::head_dim; i += 32) {
      store(at(i, slot), value(i));
      if (S::warpgroups && is_last)
        for (int behind = slot + 1; behind < block_tokens; ++behind) store(at(i, behind), 0.0f);
    }
  } else {
    const float inverse = write_scale<S>(value, head, slot, true);
    const int in_piece = slot % 8 / 4 * 4 + byte_of(slot % 4);
    for (int i = lane(); i < S::head_dim; i += 32)
      to[(i / 16 * 8 + i % 8) * 64 + slot / 8 * 16 + i / 8 % 2 * 8 + in_piece] = static_cast<std::byte>(S::Cache::encode(value(i) * inverse));
  }
}

// Blocks along x have a token each, warps along y a head: of the queries, then of the keys, then of the values.
template <class S> inline void prepare(const Call& call) {
  const Batch& batch = *call.batch;
  const int token = static_cast<int>(blockIdx.x), warp = static_cast<int>(threadIdx.x) / 32;
  const int head = static_cast<int>(blockIdx.y) * prepare_warps + warp;
  if (token >= batch.num_tokens || head >= S::heads + 2 * S::kv_heads) return;
  const Weights<S> weights(call);
  const int position = batch.positions[token];
  const float* cosines = weights.rope + int64_t{position} * S::rotary_dim;
  float* vector = shared<PrepareShared<S>>().vectors[warp];

  if (head < S::heads) {
    load_vector<S, typename S::Query>(call.inputs[0], token, head, vector);
    if constexpr (S::norms_q) normalize<S>(vector, weights.q_norm);
    bf16* to = query<S>(call, token, head);
    for (int i = lane(); i < Layout<S>::key_columns; i += 32) store(to + i, i < S::head_dim ? rotated<S>(vector, i, cosines) * query_scale<S>() : 0);
    return;
  }
  const Sequence of = sequence_of(batch, sequence_with(batch, token));
  const int slot = position % block_tokens, block = of.blocks[position / block_tokens];
  if (head < S::heads + S::kv_heads) {
    const int kv_head = head - S::heads;
    load_vector<S, typename S::Key>(call.inputs[1], token, kv_head, vector);
    if constexpr (S::norms_k) normalize<S>(vector, weights.k_norm);
    write_key<S>([&](int i) { return rotated<S>(vector, i, cosines); }, head_of<S>(call, block, kv_head), slot);
  } else {
    const int kv_head = head - S::heads - S::kv_heads;
    load_vector<S, typename S::Value>(call.inputs[2], token, kv_head, vector);
    write_value<S>([&](int i) { return vector[i]; }, head_of<S>(call, block, kv_head), slot, position == of.length - 1);
  }
}

}  // namespace slipway::cuda::paged_attention
