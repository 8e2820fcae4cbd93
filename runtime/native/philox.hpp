// Philox4x32-10 (Salmon et al., SC'11): a counter and a key give four random words, without any state.
#pragma once
#include <array>
#include <cstdint>

namespace slipway {

using PhiloxCounter = std::array<uint32_t, 4>;
using PhiloxKey = std::array<uint32_t, 2>;

inline PhiloxCounter philox4x32(PhiloxCounter c, PhiloxKey k) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = uint64_t{0xD2511F53} * c[0];
    const uint64_t b = uint64_t{0xCD9E8D57} * c[2];
    c = {static_cast<uint32_t>(b >> 32) ^ c[1] ^ k[0], static_cast<uint32_t>(b),
         static_cast<uint32_t>(a >> 32) ^ c[3] ^ k[1], static_cast<uint32_t>(a)};
    k = {k[0] + 0x9E3779B9u, k[1] + 0xBB67AE85u};
  }
  return c;
}

// Key: the seed. Counter: the stream (a sequence of the request) and the position in it.
inline PhiloxCounter random_words(uint64_t seed, uint32_t stream, uint64_t position) {
  return philox4x32({static_cast<uint32_t>(position), static_cast<uint32_t>(position >> 32), stream, 0},
                    {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)});
}

// In [0, 1), 53 bits.
inline double random_uniform(uint64_t seed, uint32_t stream, uint64_t position) {
  const PhiloxCounter w = random_words(seed, stream, position);
  return static_cast<double>((uint64_t{w[0]} << 21) ^ (w[1] >> 11)) * 0x1p-53;
}

}  // namespace slipway
