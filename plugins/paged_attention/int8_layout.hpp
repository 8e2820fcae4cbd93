// Keys and values in int8 with a scale for each token and KV head. Of each head of a block: keys [2][head_dim/4][16 tokens][4], codes
// u8 = q + 128; the scales of its keys, then of its values, float32 [32] each; values [columns/16][8 token quads][16 columns][4], int8.
// Both are AMX B tiles and operands of integer dot products as they lie.
#pragma once
#include "paged_attention/head.hpp"

namespace slipway::paged_attention {

inline constexpr float least_magnitude = 1e-30f;  // below it, zero: its inverse times a code would overflow

template <class Shape>
struct Int8Layout {
  static constexpr int columns = Layout<Shape>::columns, tiles = columns / lanes;
  static constexpr int64_t keys_bytes = block_size * Shape::head_dim, side_bytes = keys_bytes / 2;
  static constexpr int64_t scales_bytes = 2 * block_size * sizeof(float), tile_bytes = block_size * lanes;
  static constexpr int64_t values_at = keys_bytes + scales_bytes, head_bytes = values_at + tiles * tile_bytes;

  static const float* key_scales(const std::byte* head) { return reinterpret_cast<const float*>(head + keys_bytes); }
  static const float* value_scales(const std::byte* head) { return key_scales(head) + block_size; }

  // A token's column of the words [head_dim/4][16]: four columns of the head are a word.
  static void store_key(const Head<Shape>& key, std::byte* head, int slot) {
    alignas(16) uint32_t words[columns / 4];
    const float scale = encode(key, reinterpret_cast<int8_t*>(words));
    std::memcpy(head + keys_bytes + slot * sizeof scale, &scale, sizeof scale);
    uint32_t* out = reinterpret_cast<uint32_t*>(head + slot / 16 * side_bytes) + slot % 16;
    for (int i = 0; i < Shape::head_dim / 4; ++i) out[i * 16] = words[i] ^ 0x80808080;
  }

  // A token's fourth of the words of four slots.
  static void store_value(const Head<Shape>& value, std::byte* head, int slot) {
    alignas(16) int8_t codes[columns];
    const float scale = encode(value, codes);
    std::memcpy(head + keys_bytes + (block_size + slot) * sizeof scale, &scale, sizeof scale);
    int8_t* out = reinterpret_cast<int8_t*>(head + values_at + slot / 4 * 64);
    for (int i = 0; i < tiles; ++i) {
      store_fourth(out + i * tile_bytes, _mm_load_si128(reinterpret_cast<const __m128i*>(codes + i * lanes)), slot % 4);
    }
  }

 private:
  // -> the scale: NaN if a number is not finite.
  static float encode(const Head<Shape>& head, int8_t* codes) {
    const float magnitude = head.magnitude();
    const f32x16 steps = f32x16::splat(magnitude > least_magnitude ? 127 / magnitude : 0);
    for (int i = 0; i < head.vectors; ++i) {
      _mm_store_si128(reinterpret_cast<__m128i*>(codes + i * lanes), to_int8(head.x[i] * steps));
    }
    return magnitude / 127;
  }
};

}  // namespace slipway::paged_attention
