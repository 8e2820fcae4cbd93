// The matrix instructions of a warp, by the fragment layouts of the PTX manual ("Matrix fragments for mma.m16n8k16").
#pragma once
#include "slipway/codes.hpp"
#include "slipway/emulation/block.hpp"

namespace slipway::emulation {

inline float low_bf16(uint32_t pair) { return codes::from_bf16(pair); }
inline float high_bf16(uint32_t pair) { return codes::from_bf16(pair >> 16); }

struct MatrixFragments {
  uint32_t a[4], b[2];
  float c[4];
};

// D[16, 8] = A[16, 16] B[16, 8] + C. Of thread (g, q) = (lane / 4, lane % 4): a0 holds A[g][2q, 2q+1], a1 A[g + 8][2q, 2q+1], a2 and a3
// the same eight columns on; b0 B[2q, 2q+1][g], b1 eight rows on; c0, c1 C[g][2q, 2q+1], c2, c3 C[g + 8][2q, 2q+1].
inline void multiply_bf16(Meeting::Slot* slots) {
  float a[16][16], b[16][8], c[16][8];
  MatrixFragments of[warp_size];
  for (int lane = 0; lane < warp_size; ++lane) std::memcpy(&of[lane], &slots[lane], sizeof of[lane]);
  for (int lane = 0; lane < warp_size; ++lane) {
    const MatrixFragments& f = of[lane];
    const int g = lane / 4, q = lane % 4;
    for (int i = 0; i < 4; ++i) {
      const int row = g + i % 2 * 8, column = 2 * q + i / 2 * 8;
      a[row][column] = low_bf16(f.a[i]);
      a[row][column + 1] = high_bf16(f.a[i]);
      c[g + i / 2 * 8][2 * q + i % 2] = f.c[i];
    }
    for (int i = 0; i < 2; ++i) {
      b[2 * q + 8 * i][g] = low_bf16(f.b[i]);
      b[2 * q + 8 * i + 1][g] = high_bf16(f.b[i]);
    }
  }
  for (int row = 0; row < 16; ++row)
    for (int k = 0; k < 16; ++k)
      for (int column = 0; column < 8; ++column) c[row][column] += a[row][k] * b[k][column];
  for (int lane = 0; lane < warp_size; ++lane) {
    const int g = lane / 4, q = lane % 4;
    for (int i = 0; i < 4; ++i) of[lane].c[i] = c[g + i / 2 * 8][2 * q + i % 2];
    std::memcpy(&slots[lane], of[lane].c, sizeof of[lane].c);
  }
}

inline void mma_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  MatrixFragments mine;
  std::memcpy(mine.a, a, sizeof a);
  std::memcpy(mine.b, b, sizeof b);
  std::memcpy(mine.c, d, sizeof d);
  const Meeting::Slot* slots = Block::current().meet("mma", mine, multiply_bf16);
  std::memcpy(d, &slots[Block::self()->rank % warp_size], sizeof d);
}

}  // namespace slipway::emulation
