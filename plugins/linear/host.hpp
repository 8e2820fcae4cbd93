// y = x Wᵀ (+ bias), or activation(x gateᵀ) * (x upᵀ): which kernel runs a step, by instruction set, format and rows.
#pragma once
#include "linear/host/amx_blocked.hpp"
#include "linear/host/amx_stream.hpp"
#include "linear/host/bf16_dots.hpp"
#include "linear/host/fma.hpp"
#include "linear/host/int8_dots.hpp"

namespace slipway::linear {

#if defined(__AMX_TILE__)

// private_bytes: of local_bytes, the scratch of a thread, the part for rows that it packs for itself.
template <class P, bool biased, int64_t private_bytes, int64_t local_bytes>
void run(const Call& call) {
  static_assert(private_bytes >= 16 * TileRows<P>::row_bytes && private_bytes + BlockedLinear<P>::scratch_bytes <= local_bytes);
  const float* bias = P::bias(call, biased);
  if (call.rows <= most_streamed_rows<P>) return run_streamed<P>(call, bias);
  BlockedLinear<P>::run(call, call.local + private_bytes, bias);
}

#else

template <class P, bool biased, int64_t private_bytes, int64_t local_bytes>
void run(const Call& call) {
  const float* bias = P::bias(call, biased);
  static_assert(private_bytes % 64 == 0);
  [[maybe_unused]] constexpr int64_t room = local_bytes - private_bytes, spread_bytes = P::Weights::coded ? int64_t{32} * P::blocks * P::Weights::block_k : 0;
#if defined(__AVX512VNNI__)
  if constexpr (P::Weights::integer) {
    static_assert(spread_bytes <= room);
    return run_int8_dots<P>(call, call.local + private_bytes, bias);
  } else
#endif
#if defined(__AVX512BF16__)
    static_assert(P::Weights::integer || 2 * spread_bytes <= room);
    return run_bf16_dots<P>(call, call.local + private_bytes, bias);
#else
    return run_fma<P>(call, bias);
#endif
}

#endif

}  // namespace slipway::linear
