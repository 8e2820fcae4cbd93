// How packed weights become the A operand of a warp's matrix multiplication. Mirrors plugins/linear/pack_cuda.py.
//
// A tile is 16 outputs, a chunk 64 inputs of them: four multiplications of 16. The sum over inputs has any order, so the order is
// one in which every thread reads 16 bytes at a time, of weights and of activations: thread (g, q) = (lane / 4, lane % 4) has inputs
// 32 h + 8 q + 0..7 of the halves h = 0, 1 of a chunk, of outputs g and g + 8; multiplication m takes four of them, 4 (m % 2) + 0..3
// of half m / 2, as its columns 2q, 2q + 1, 2q + 8, 2q + 9.
//
// A format loads what it holds of a chunk (Raw) and decodes multiplication m of it to pairs of bf16, exactly. fold: inputs after
// which sums are to be multiplied by fold_by and added up in float32; 0: never. Sums of a format that has unit(raw) are counted in that
// unit, the same for all outputs of a tile. What is left of a scale, `scales` (null: none), an output each, goes to the epilogue. All
// arrays of a linear lie behind each other, codes first.
#pragma once
#include "slipway/cuda/bytes.cuh"

namespace slipway::cuda::linear {

inline constexpr int tile_rows = 16, chunk_columns = 64;
inline constexpr int chunks_of(int inputs) { return (inputs + chunk_columns - 1) / chunk_columns; }
inline constexpr int64_t weights_of(int tiles, int inputs) { return int64_t{tiles} * tile_rows * chunks_of(inputs) * chunk_columns; }

// Row-major [outputs][inputs], both padded with zeros to whole tiles and chunks.
template <int tiles, int inputs> struct Bf16 {
  static constexpr int fold = 0;
  struct Raw {
    Words<4> words[2][2];  // [output g, g + 8][half]
  };

  explicit Bf16(const std::byte* data) : data_(data) {}
  const float* scales() const { return nullptr; }

  Raw load(int tile, int chunk) const {
    constexpr int64_t row_bytes = int64_t{2} * chunks_of(inputs) * chunk_columns;
    const std::byte* at = data_ + (int64_t{tile} * tile_rows + lane() / 4) * row_bytes + chunk * 2 * chunk_columns + lane() % 4 * 16;
    Raw raw;
#pragma unroll
    for (int i = 0; i < 4; ++i) raw.words[i / 2][i % 2] = load_streaming(reinterpret_cast<const Words<4>*>(at + i / 2 * 8 * row_bytes + i % 2 * 64));
    return raw;
  }

  static void decode(const Raw& raw, int m, uint32_t (&a)[4]) {
#pragma unroll
    for (int i = 0; i < 4; ++i) a[i] = raw.words[i % 2][m / 2].words[m % 2 * 2 + i / 2];
  }

 private:
  const std::byte* data_;
};

// One byte a weight: [outputs][chunks][q][half][8], of every four neighbours the bytes 2 0 3 1. The scale of an output waits for the epilogue.
template <int tiles, int inputs, class Code> struct Bytes {
  static constexpr int fold = 0;
  struct Raw {
    Words<4> words[2];  // [output g, g + 8]: word m is multiplication m's
  };

  explicit Bytes(const std::byte* data) : data_(data) {}
  const float* scales() const { return reinterpret_cast<const float*>(data_ + weights_of(tiles, inputs)); }

  Raw load(int tile, int chunk) const {
    constexpr int64_t row_bytes = int64_t{chunks_of(inputs)} * chunk_columns;
    const std::byte* at = data_ + (int64_t{tile} * tile_rows + lane() / 4) * row_bytes + chunk * chunk_columns + lane() % 4 * 16;
    return {{load_streaming(reinterpret_cast<const Words<4>*>(at)), load_streaming(reinterpret_cast<const Words<4>*>(at + 8 * row_bytes))}};
  }

  static void decode(const Raw& raw, int m, uint32_t (&a)[4]) {
#pragma unroll
    for (int i = 0; i < 2; ++i) Code::decode(raw.words[i].words[m], a[i], a[i + 2]);
  }

 private:
  const std::byte* data_;
};

template <int tiles, int inputs> using Int8 = Bytes<tiles, inputs, Int8Code>;
template <int tiles, int inputs> using Fp8 = Bytes<tiles, inputs, Fp8Code>;

// Codes as those of Fp8, then a float32 for each tile and 128 inputs, [tiles][groups].
template <int tiles, int inputs> struct Fp8Block {
  static constexpr int fold = 0, group = 128, groups = (inputs + group - 1) / group;
  struct Raw {
    typename Fp8<tiles, inputs>::Raw codes;
    float multiplier;
  };

  explicit Fp8Block(const std::byte* data) : codes_(data) {}
  const float* scales() const { return nullptr; }

  Raw load(int tile, int chunk) const {
    return {codes_.load(tile, chunk), codes_.scales()[int64_t{tile} * groups + chunk * chunk_columns / group]};
  }
  static void decode(const Raw& raw, int m, uint32_t (&a)[4]) { Fp8<tiles, inputs>::decode(raw.codes, m, a); }
  static float unit(const Raw& raw) { return raw.multiplier; }

 private:
  Fp8<tiles, inputs> codes_;
};

// Half a byte a weight, [tiles][chunks][lane][m] words. What 32 bits hold is the format's.
template <int inputs> inline Words<4> load_half_bytes(const std::byte* data, int tile, int chunk) {
  return load_streaming(reinterpret_cast<const Words<4>*>(data) + (int64_t{tile} * chunks_of(inputs) + chunk) * 32 + lane());
}

// Nibble i is the low half of a[i], nibble i + 4 the high one. 0x4300 | code is 128 + code in bf16; the zero is taken off exactly.
// multipliers i16 and zeros u8: [tiles][groups][output].
template <int tiles, int inputs, int group, bool zero_point> struct Int4 {
  static constexpr int fold = group < chunk_columns ? group : chunk_columns;
  static constexpr int groups = (inputs + group - 1) / group, folds = chunk_columns / fold;
  struct Raw {
    Words<4> words;
    uint32_t multipliers[folds];  // 16 bits for output g, 16 for g + 8
    uint32_t zeros[folds];        // likewise
  };

  explicit Int4(const std::byte* data) : codes_(data) {}
  const float* scales() const { return reinterpret_cast<const float*>(codes_ + weights_of(tiles, inputs) / 2); }

  Raw load(int tile, int chunk) const {
    const auto* multipliers = reinterpret_cast<const uint16_t*>(scales() + tiles * tile_rows);
    const auto* zeros = reinterpret_cast<const uint8_t*>(multipliers + int64_t{tiles} * tile_rows * groups);
    Raw raw;
    raw.words = load_half_bytes<inputs>(codes_, tile, chunk);
#pragma unroll
    for (int i = 0; i < folds; ++i) {
      const int in_group = min((chunk * chunk_columns + i * fold) / group, groups - 1);
      const int64_t at = (int64_t{tile} * groups + in_group) * tile_rows + lane() / 4;
      raw.multipliers[i] = uint32_t{multipliers[at]} | uint32_t{multipliers[at + 8]} << 16;
      raw.zeros[i] = zero_point ? uint32_t{zeros[at]} | uint32_t{zeros[at + 8]} << 16 : codes::int4_zero * 0x10001u;
    }
    return raw;
  }

  static void decode(const Raw& raw, int m, uint32_t (&a)[4]) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const uint32_t zero = (raw.zeros[m * 16 / fold] >> (16 * (i % 2)) & 0xffffu) + 0xc300u;  // -(128 + zero)
      a[i] = fma_bf16x2((raw.words.words[m] >> (4 * i) & 0x000f000fu) | 0x43004300u, 0x3f803f80u, zero << 16 | zero);
    }
  }

  static float fold_by(const Raw& raw, int which, int second) { return static_cast<int16_t>(raw.multipliers[which] >> (16 * second)); }

 private:
  const std::byte* codes_;
};

static_assert(codes::all(16, [](uint32_t code) { return codes::from_bf16(0x4300u | code) == 128.0f + static_cast<float>(code); }));

// e2m1 codes, a scale for each `group` inputs of an output. The codes of both halves lie so that masks and shifts put sign, exponent and
// fraction where bf16 has them, of 2^-126 times the value: code 0 at bits 15, 8..6, code 1 at 14; 11, 10; 13, code 2 at 12; 5..3, code 3 at
// 9; 2..0. Scales, [tiles][chunks][output][groups] bytes, become bf16 times 2^113: the product, exact, is 2^-13 of the weight.
inline constexpr float fp4_scale = 0x1p13f;  // so much larger are the scales of outputs
static_assert(codes::all(16, [](uint32_t code) { return codes::from_bf16((code & 8) << 12 | (code & 7) << 6) * 0x1p126f == codes::e2m1(code); }));
template <int tiles, int inputs, class Scale> struct Fp4 {
  static constexpr int fold = 0;
  static constexpr int groups = chunk_columns / Scale::group;
  struct Raw {
    Words<4> words;
    uint32_t scales[2];
  };

  explicit Fp4(const std::byte* data) : codes_(data) {}
  const float* scales() const { return reinterpret_cast<const float*>(codes_ + weights_of(tiles, inputs) / 2); }

  Raw load(int tile, int chunk) const {
    Raw raw;
    raw.words = load_half_bytes<inputs>(codes_, tile, chunk);
    const int64_t output = (int64_t{tile} * chunks_of(inputs) + chunk) * tile_rows + lane() / 4;
    const std::byte* at = reinterpret_cast<const std::byte*>(scales() + tiles * tile_rows) + output * groups;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      if constexpr (groups == 4)
        raw.scales[i] = *reinterpret_cast<const uint32_t*>(at + i * 8 * groups);
      else
        raw.scales[i] = *reinterpret_cast<const uint16_t*>(at + i * 8 * groups);
    }
    return raw;
  }

  static void decode(const Raw& raw, int m, uint32_t (&a)[4]) {
    const uint32_t word = raw.words.words[m];
    const int in_group = Scale::group == 16 ? m / 2 * 2 + lane() % 4 / 2 : m / 2;
    const uint32_t codes[4] = {
        word & 0x81c081c0u,
        (word << 1 & 0x80008000u) | (word >> 3 & 0x01800180u) | (word >> 7 & 0x00400040u),
        word << 3 & 0x81c081c0u,
        word << 6 & 0x81c081c0u,
    };
#pragma unroll
    for (int i = 0; i < 4; ++i) a[i] = fma_bf16x2(codes[i], Scale::pair(raw.scales[i % 2] >> (8 * in_group) & 0xffu), 0x80008000u);
  }

 private:
  const std::byte* codes_;
};

// e4m3, never negative.
struct Nvfp4Scale {
  static constexpr int group = 16;
  static uint32_t pair(uint32_t code) {
    const uint32_t high = as_bits(Fp8Code::value(code) * 0x1p113f) >> 16;
    return high << 16 | high;
  }
};
static_assert(codes::all(codes::e4m3_nan, [](uint32_t code) {
  return codes::from_bits(code << 20) * 0x1p120f == codes::e4m3(code) && (codes::bits_of(codes::e4m3(code) * 0x1p113f) & 0xffff) == 0;
}));

// e8m0: 2^(code - 127).
struct Mxfp4Scale {
  static constexpr int group = 32;
  static uint32_t pair(uint32_t code) {
    const uint32_t high = (code + 113) << 7;
    return high << 16 | high;
  }
};
static_assert(codes::all(142, [](uint32_t code) { return !code || codes::from_bf16((code + 113) << 7) == codes::e8m0(code) * 0x1p113f; }));  // LARGEST_E8M0

template <int tiles, int inputs> using Nvfp4 = Fp4<tiles, inputs, Nvfp4Scale>;
template <int tiles, int inputs> using Mxfp4 = Fp4<tiles, inputs, Mxfp4Scale>;

}  // namespace slipway::cuda::linear
