#include "row_scan.hpp"

#include <algorithm>
#include <bit>
#include <cstring>
#include <functional>
#include <limits>

#define SLIPWAY_INLINE inline __attribute__((always_inline))

namespace slipway {
namespace {

using Lanes = float __attribute__((vector_size(32)));
using Bits = int32_t __attribute__((vector_size(32)));
using UnsignedBits = uint32_t __attribute__((vector_size(32)));

constexpr float infinity = std::numeric_limits<float>::infinity();

SLIPWAY_INLINE void load(const float* from, Lanes& to) { std::memcpy(&to, from, sizeof to); }

// The last lanes of a row; what is missing is -inf.
SLIPWAY_INLINE void load_tail(const float* from, size_t count, Lanes& to) {
  to = Lanes{} - infinity;
  std::memcpy(&to, from, count * sizeof(float));
}

// Only maxima: GCC 12 turns other comparisons of wide vectors into scalar code. As integers, NaN and +inf are the largest:
// the positive ones when signed, the negative ones when unsigned.
struct Extremes {
  Lanes max = Lanes{} - infinity;
  Bits positive{};
  UnsignedBits negative{};

  SLIPWAY_INLINE void take(const Lanes& x) {
    const Bits bits = (Bits)x;  // same bits
    const UnsignedBits unsigned_bits = (UnsignedBits)x;
    max = x > max ? x : max;
    positive = bits > positive ? bits : positive;
    negative = unsigned_bits > negative ? unsigned_bits : negative;
  }
};

bool is_valid(const Extremes& seen) {
  const uint32_t plus_infinity = std::bit_cast<uint32_t>(infinity), minus_infinity = std::bit_cast<uint32_t>(-infinity);
  for (size_t lane = 0; lane < row_lanes; ++lane)
    if (seen.positive[lane] >= static_cast<int32_t>(plus_infinity) || seen.negative[lane] > minus_infinity) return false;
  return true;
}

// exp(x) for x <= 0, relative error below 2e-7; 0 below -88. Cephes' polynomial.
SLIPWAY_INLINE void exp_lanes(Lanes& x) {
  constexpr float log2e = 1.44269504f, ln2_hi = 0.693359375f, ln2_lo = -2.12194440e-4f;
  const Lanes least = Lanes{} - 100.0f;
  x = x > least ? x : least;
  const Bits n = __builtin_convertvector(x * log2e - 0.5f, Bits);  // truncation: to nearest, as x <= 0
  const Lanes whole = __builtin_convertvector(n, Lanes);
  const Lanes r = x - whole * ln2_hi - whole * ln2_lo;
  Lanes p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  Bits exponent = n + 127;
  exponent = exponent > Bits{} ? exponent : Bits{};  // 2^-127 and less: 0
  x = p * (Lanes)(exponent << 23);
}

SLIPWAY_INLINE bool scan_chunks(const float* row, size_t size, float* group_max) {
  Extremes seen;
  Lanes x;
  for (size_t start = 0; start < size; start += row_chunk, group_max += row_lanes) {
    const size_t end = std::min(start + row_chunk, size);
    seen.max = Lanes{} - infinity;
    size_t i = start;
    for (; i + row_lanes <= end; i += row_lanes) {
      load(row + i, x);
      seen.take(x);
    }
    if (i < end) {
      load_tail(row + i, end - i, x);
      seen.take(x);
    }
    std::memcpy(group_max, &seen.max, sizeof seen.max);
  }
  return is_valid(seen);
}

SLIPWAY_INLINE void weigh_chunks(const float* row, size_t size, float max, float scale, float* weights, double* sums) {
  for (size_t start = 0; start < size; start += row_chunk) {
    const size_t end = std::min(start + row_chunk, size);
    Lanes sum{}, x;
    size_t i = start;
    for (; i + row_lanes <= end; i += row_lanes) {
      load(row + i, x);
      x = (x - max) * scale;
      exp_lanes(x);
      sum += x;
      std::memcpy(weights + i, &x, sizeof x);
    }
    if (i < end) {
      load_tail(row + i, end - i, x);
      x = (x - max) * scale;
      exp_lanes(x);
      sum += x;
      std::memcpy(weights + i, &x, (end - i) * sizeof(float));
    }
    double total = 0;
    for (size_t lane = 0; lane < row_lanes; ++lane) total += static_cast<double>(sum[lane]);
    *sums++ = total;
  }
}

// The same code compiled twice. 32-byte vectors: two registers without AVX, and nearly memory's speed with it.
#if defined(__x86_64__)
__attribute__((target("avx2,fma"))) bool scan_chunks_avx2(const float* row, size_t size, float* group_max) {
  return scan_chunks(row, size, group_max);
}
__attribute__((target("avx2,fma"))) void weigh_chunks_avx2(const float* row, size_t size, float max, float scale, float* weights, double* sums) {
  weigh_chunks(row, size, max, scale, weights, sums);
}
const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#else
constexpr bool has_avx2 = false;
constexpr auto scan_chunks_avx2 = scan_chunks;
constexpr auto weigh_chunks_avx2 = weigh_chunks;
#endif

// No branch on the data: the position moves on only past what is kept.
size_t compact(std::span<const float> values, int32_t first, float threshold, int32_t* out) {
  size_t kept = 0;
  for (size_t i = 0; i < values.size(); ++i) {
    out[kept] = first + static_cast<int32_t>(i);
    kept += values[i] >= threshold;
  }
  return kept;
}

size_t num_chunks(size_t size) { return (size + row_chunk - 1) / row_chunk; }

}  // namespace

void scan_row(std::span<const float> row, RowScan& scan) {
  scan.group_max.resize(num_chunks(row.size()) * row_lanes);
  scan.valid = (has_avx2 ? scan_chunks_avx2 : scan_chunks)(row.data(), row.size(), scan.group_max.data());
  scan.max = *std::ranges::max_element(scan.group_max);
}

int32_t best_token(std::span<const float> row, const RowScan& scan) {
  const auto group = static_cast<size_t>(std::ranges::find(scan.group_max, scan.max) - scan.group_max.begin());
  const auto rest = row.subspan(group / row_lanes * row_chunk);
  return static_cast<int32_t>(std::ranges::find(rest, scan.max) - row.begin());
}

float threshold_of_best(const RowScan& scan, size_t count, std::vector<float>& scratch) {
  constexpr float lowest = std::numeric_limits<float>::lowest();
  if (count == 0 || count > scan.group_max.size()) return lowest;
  scratch = scan.group_max;
  const auto place = scratch.begin() + static_cast<ptrdiff_t>(count) - 1;
  std::ranges::nth_element(scratch, place, std::greater<>());
  return std::max(*place, lowest);
}

void tokens_from(std::span<const float> row, const RowScan& scan, float threshold, std::vector<int32_t>& tokens) {
  tokens.clear();
  for (size_t chunk = 0; chunk < num_chunks(row.size()); ++chunk) {
    const auto groups = std::span(scan.group_max).subspan(chunk * row_lanes, row_lanes);
    if (std::ranges::none_of(groups, [threshold](float max) { return max >= threshold; })) continue;
    const size_t start = chunk * row_chunk, kept = tokens.size();
    const auto values = row.subspan(start, std::min(row_chunk, row.size() - start));
    tokens.resize(kept + values.size());
    tokens.resize(kept + compact(values, static_cast<int32_t>(start), threshold, tokens.data() + kept));
  }
}

void weigh_row(std::span<const float> row, float max, float scale, std::span<float> weights, std::vector<double>& chunk_sums) {
  chunk_sums.resize(num_chunks(row.size()));
  (has_avx2 ? weigh_chunks_avx2 : weigh_chunks)(row.data(), row.size(), max, scale, weights.data(), chunk_sums.data());
}

}  // namespace slipway
