// y = x Wᵀ (+ bias), or activation(x gateᵀ) * (x upᵀ): which kernel runs a step, by instruction set, format and rows.
#pragma once
#include "linear/host/amx_blocked.hpp"
#include "linear/host/amx_int4.hpp"
#include "linear/host/amx_stream.hpp"
#include "linear/host/fma.hpp"
#include "linear/host/vnni.hpp"

namespace slipway::linear {

#if defined(__AMX_TILE__)

// private_bytes: of local_bytes, the scratch of a thread, the part for rows that it packs for itself.
template <class P, bool biased, bool deterministic, int64_t private_bytes, int64_t local_bytes>
void run(const Call& call) {
  using Weights = typename P::Weights;
  const float* bias = P::bias(call, biased);
  std::byte* scratch = call.local + private_bytes;
  static_assert(private_bytes >= 16 * TileRows<P>::row_bytes);
  if constexpr (Weights::grouped) {
    constexpr int decode_from = 80;  // rows from which decoding a panel costs less than folding its groups
    using Decoded = BlockedLinear<P, Bf16Rows<P>, DecodedPanels<P>>;
    static_assert(private_bytes + Decoded::scratch_bytes <= local_bytes);
    if (call.rows == 1) return run_vnni<P>(call, bias);
    if (deterministic || call.rows < decode_from) return run_amx_int4<P>(call, bias);
    Decoded::run(call, scratch, bias);
  } else {
    using Blocked = BlockedLinear<P, TileRows<P>, StoredPanels<P>>;
    static_assert(private_bytes + Blocked::scratch_bytes <= local_bytes);
    if (call.rows <= StreamedLinear<P>::max_rows) return StreamedLinear<P>::run(call, bias);
    Blocked::run(call, scratch, bias);
  }
}

#else

template <class P, bool biased, bool, int64_t, int64_t>
void run(const Call& call) {
#if defined(__AVX512VNNI__)
  if constexpr (P::Weights::integer) return run_vnni<P>(call, P::bias(call, biased));
  else
#endif
    return run_fma<P>(call, P::bias(call, biased));
}

#endif

}  // namespace slipway::linear
