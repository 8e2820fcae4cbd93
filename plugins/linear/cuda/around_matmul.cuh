// What a linear does before and after cuBLASLt's multiplication. Mirrors plugins/linear/by_cublas.py.
//
// Each row has a record in the scratch: the codes of its activations, if codes are multiplied and they do not come as such, what it was
// multiplied to (outputs in the order of the packed weights), and behind that the scale of the codes.
#pragma once
#include "linear/cuda/problem.cuh"
#include "slipway/cuda/coded_rows.cuh"

namespace slipway::cuda::linear {

inline constexpr int around_threads = 256;  // of each kernel here

// coded: the call's input has the codes, and behind them their scale.
template <class P, class Result_, int64_t bytes, int64_t results_at, bool coded> struct Record {
  using Result = Result_;
  std::byte *begin, *input;

  Record(const Call& call, int row) : begin(call.scratch + row * bytes), input(call.inputs[0].row<std::byte>(row)) {}
  // Behind the records of all rows that the graph was captured for, as the runtime counts too. Of kernels with a block for each of them along x.
  static std::byte* behind_rows(const Call& call) { return call.scratch + gridDim.x * bytes; }
  Result* results() const { return reinterpret_cast<Result*>(begin + results_at); }
  float* scale() const { return reinterpret_cast<float*>(coded ? input + P::inputs : reinterpret_cast<std::byte*>(results() + P::tiles * tile_rows)); }
};

struct CodesShared {
  float largest[around_threads / 32];
};

// A row's codes and their scale, by a block. each_eight(body): body(eight, values) of all that this thread has of the row, as often as asked.
template <class EachEight> inline void write_codes(std::byte* codes, float* scale, EachEight each_eight) {
  float largest = 0;
  each_eight([&](int, const float (&values)[8]) {
#pragma unroll
    for (int j = 0; j < 8; ++j) largest = larger_or_nan(largest, fabsf(values[j]));
  });
  largest = block_largest<around_threads>(largest, shared<CodesShared>().largest);
  if (threadIdx.x == 0) *scale = scale_of_codes<Fp8Code>(largest);
  const float inverse = codes_per_unit<Fp8Code>(largest);
  each_eight([&](int eight, const float (&values)[8]) {
    Words<2> coded{};
#pragma unroll
    for (int j = 0; j < 8; ++j) coded.words[j / 4] |= Fp8Code::encode(values[j] * inverse) << 8 * byte_of(j % 4);
    *reinterpret_cast<Words<2>*>(codes + coded_eight(eight)) = coded;
  });
}

inline void unpack(const Words<4>& eight, float* values) {
#pragma unroll
  for (int i = 0; i < 8; ++i) values[i] = as_float(i % 2 ? eight.words[i / 2] & 0xffff0000u : eight.words[i / 2] << 16);
}

// Blocks along x have a row each.
template <class P, class R> inline void quantize_inputs(const Call& call) {
  const int row = static_cast<int>(blockIdx.x);
  if (row >= call.rows()) return;
  const auto* x = call.inputs[0].row<const typename P::In>(row);
  const R record(call, row);
  write_codes(record.begin, record.scale(), [&](auto body) {
    for (int i = static_cast<int>(threadIdx.x); i < P::chunks * chunk_columns / 8; i += around_threads) {
      float values[8];
      unpack(load_inputs<P>(x, 8 * i), values);
      body(i, values);
    }
  });
}

// Eight outputs of a row, from `first` on.
template <class P, class R, bool scaled> inline void finish_eight(const Call& call, const R& record, int first, float (&values)[8]) {
  const float scale = scaled ? *record.scale() : 1;
  const auto load = [&](int tile, int from, float (&to)[8]) {
    const auto* results = record.results() + tile * tile_rows + from;
#pragma unroll
    for (int i = 0; i < 8; ++i) to[i] = finished<P>(call, scale * to_float(results[i]), tile, from + i);
  };
  constexpr int pairs = P::gated ? 2 : 1;
  const int tile = first / tile_rows * pairs, from = first % tile_rows;
  load(tile, from, values);
  if constexpr (P::gated) {
    float up[8];
    load(tile + 1, from, up);
#pragma unroll
    for (int i = 0; i < 8; ++i) values[i] = typename P::Activation()(values[i]) * up[i];
  }
}

// Blocks along x have a row each, along y some of its outputs.
template <class P, class R, bool scaled> inline void finish_outputs(const Call& call) {
  const int row = static_cast<int>(blockIdx.x), first = (static_cast<int>(blockIdx.y) * around_threads + static_cast<int>(threadIdx.x)) * 8;
  if (row >= call.rows() || first >= P::outputs) return;
  float values[8];
  finish_eight<P, R, scaled>(call, R(call, row), first, values);
  if constexpr (P::adds) {
    const auto* residual = reinterpret_cast<const Words<4>*>(call.inputs[1].row<const float>(row) + first);
    check_alignment(residual, 16);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const Words<4> four = residual[half];
#pragma unroll
      for (int i = 0; i < 4; ++i) values[4 * half + i] += as_float(four.words[i]);
    }
  }
  store_eight(call.outputs[0].row<typename P::Out>(row) + first, values);
}

// Blocks along x have a row each, which becomes codes. The results are read twice, the second time from L1 or L2.
template <class P, class R, bool scaled> inline void finish_as_codes(const Call& call) {
  const int row = static_cast<int>(blockIdx.x);
  if (row >= call.rows()) return;
  const R record(call, row);
  auto* codes = call.outputs[0].row<std::byte>(row);
  write_codes(codes, reinterpret_cast<float*>(codes + P::outputs), [&](auto body) {
    for (int i = static_cast<int>(threadIdx.x); i < P::outputs / 8; i += around_threads) {
      float values[8];
      finish_eight<P, R, scaled>(call, record, 8 * i, values);
      body(i, values);
    }
  });
}

}  // namespace slipway::cuda::linear
