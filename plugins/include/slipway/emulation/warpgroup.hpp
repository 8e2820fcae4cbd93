// Warpgroups' products and bulk copies on the host. A product reads and writes when it is waited for: sums that are read before lack it, and
// operands in shared memory that are overwritten before are wrong. A bulk copy is made at once or when its barrier is waited for, as a coin falls.
#pragma once
#include "slipway/emulation/block.hpp"
#include "slipway/emulation/matrix.hpp"

namespace slipway::emulation {

// What a Barrier holds, in eight bytes.
struct BarrierState {
  uint16_t arrivals, missing;  // of a phase; in this one
  int32_t bytes : 31;          // expected and not yet there
  uint32_t parity : 1;         // of the phase under way
};
static_assert(sizeof(BarrierState) == 8);

// Changes the state; a phase in which nothing is missing ends.
template <class Change> void change(void* barrier, Change what) {
  BarrierState state;
  std::memcpy(&state, barrier, sizeof state);
  what(state);
  if (state.missing == 0 && state.bytes == 0) {
    state.parity ^= 1;
    state.missing = state.arrivals;
    Block::current().note_progress();
  }
  std::memcpy(barrier, &state, sizeof state);
}

inline void make(const BulkCopy& copy) {
  std::memcpy(copy.to, copy.from, copy.bytes);
  change(copy.barrier, [&](BarrierState& state) { state.bytes -= static_cast<int32_t>(copy.bytes); });
  Block::current().note_progress();
}

inline void wait_for_phase(void* barrier, uint32_t parity) {
  Block& block = Block::current();
  block.wait_until([&] {
    for (;;) {
      BarrierState state;
      std::memcpy(&state, barrier, sizeof state);
      if (state.parity != parity) return true;
      auto& copies = block.bulk_copies();
      const auto due = std::find_if(copies.begin(), copies.end(), [&](const BulkCopy& copy) { return copy.barrier == barrier; });
      if (due == copies.end()) return false;
      const BulkCopy copy = *due;
      copies.erase(due);
      make(copy);
    }
  });
}

inline void issue_bulk_copy(std::byte* to, const std::byte* from, uint32_t bytes, void* barrier) {
  Block& block = Block::current();
  const auto aligned = [](const void* at) { return reinterpret_cast<uintptr_t>(at) % 16 == 0; };
  if (!aligned(to) || !aligned(from) || bytes % 16) block.fail("a bulk copy of %u bytes that is not aligned to 16", bytes);
  if (to < block.shared() || to + bytes > block.shared() + block.launch().shared_bytes) block.fail("a bulk copy of %u bytes beyond shared memory", bytes);
  const BulkCopy copy{to, from, bytes, barrier};
  if (block.random().next() & 1) return make(copy);
  std::memset(to, 0xff, bytes);
  block.bulk_copies().push_back(copy);
}

// The bf16 at row, column of a matrix, by what its descriptor says: address bits 4.. are swapped by those from 7 on.
inline float element(const Matrix& matrix, int row, int column) {
  const auto field = [&](int first, int bits) { return static_cast<uint32_t>(matrix.bits >> first & ((1u << bits) - 1)); };
  const uint32_t mode = field(62, 2), row_bytes = mode == 1 ? 128 : 64, eight_rows = field(32, 14) << 4;
  uint32_t at = (field(0, 14) << 4) + static_cast<uint32_t>(row) / 8 * eight_rows + static_cast<uint32_t>(row) % 8 * row_bytes + 2 * static_cast<uint32_t>(column);
  at ^= (at >> 7 & (mode == 1 ? 7 : 3)) << 4;
  uint16_t bits;
  std::memcpy(&bits, matrix.shared + at, sizeof bits);
  return low_bf16(bits);
}

// Of a warpgroup's threads, from their share of the block's registers on; taking waits for what others give.
inline void change_registers(int count, bool takes) {
  Block& block = Block::current();
  Thread& thread = *Block::self();
  const int threads = static_cast<int>(block.launch().block.count()), own = thread.registers ? thread.registers : cuda::registers_of_block(threads) / threads;
  if (takes ? count < own : count > own) block.fail("%d registers are %s, of %d", count, takes ? "taken" : "given", own);
  if (takes) block.wait_until([&] { return block.free_registers() >= count - own; });
  block.free_registers() -= count - own;
  thread.registers = count;
  block.note_progress();
}

// Product number `at` of each of a warp's threads: D[16, n] += A[16, 16] B[n, 16]^T.
inline void make_product(Block& block, int first_rank, size_t at) {
  const Product& one = block.thread(first_rank).products[at];
  float a[16][16];
  for (int lane = 0; lane < warp_size; ++lane) {
    const Product& product = block.thread(first_rank + lane).products[at];
    if (product.b.bits != one.b.bits || product.n != one.n || product.add != one.add) block.fail("threads of a warp multiply different matrices");
    for (int i = 0; i < 4; ++i) {
      const int row = lane / 4 + i % 2 * 8, column = lane % 4 * 2 + i / 2 * 8;
      a[row][column] = low_bf16(product.a[i]), a[row][column + 1] = high_bf16(product.a[i]);
    }
  }
  for (int column = 0; column < one.n; ++column) {
    float b[16];
    for (int k = 0; k < 16; ++k) b[k] = element(one.b, column, k);
    for (int row = 0; row < 16; ++row) {
      float& d = block.thread(first_rank + row % 8 * 4 + column % 8 / 2).products[at].d[column / 8 * 4 + row / 8 * 2 + column % 2];
      float sum = one.add ? d : 0;
      for (int k = 0; k < 16; ++k) sum += a[row][k] * b[k];
      d = sum;
    }
  }
}

// All groups but the last `pending`.
inline void make_products(uint64_t pending) {
  Block& block = Block::current();
  block.meet("a wait for products", pending, [&](auto*) {
    const int first = Block::self()->rank / warp_size * warp_size;
    const Thread& one = block.thread(first);
    size_t due = 0;
    while (due < one.products.size() && one.products[due].group + pending < one.product_groups) ++due;
    for (int lane = 0; lane < warp_size; ++lane)
      if (block.thread(first + lane).products.size() != one.products.size()) block.fail("threads of a warp wait for different products");
    for (size_t at = 0; at < due; ++at) make_product(block, first, at);
    for (int lane = 0; lane < warp_size; ++lane) {
      auto& products = block.thread(first + lane).products;
      products.erase(products.begin(), products.begin() + static_cast<ptrdiff_t>(due));
    }
    block.warp(one).products += due;
  });
}

}  // namespace slipway::emulation

namespace slipway::cuda {

struct Barrier {
  uint64_t state;
};
inline void begin(Barrier& barrier, int arrivals) {
  const emulation::BarrierState state{static_cast<uint16_t>(arrivals), static_cast<uint16_t>(arrivals), 0, 0};
  std::memcpy(&barrier, &state, sizeof state);
}
inline void publish_barriers() {}
inline void arrive(Barrier& barrier) {
  emulation::change(&barrier, [](emulation::BarrierState& state) { --state.missing; });
}
inline void arrive_expecting(Barrier& barrier, int bytes) {
  emulation::change(&barrier, [&](emulation::BarrierState& state) { --state.missing, state.bytes += bytes; });
}
inline void wait(Barrier& barrier, int parity) { emulation::wait_for_phase(&barrier, static_cast<uint32_t>(parity)); }
inline void bulk_copy(void* to, const void* from, int bytes, Barrier& barrier) {
  emulation::issue_bulk_copy(static_cast<std::byte*>(to), static_cast<const std::byte*>(from), static_cast<uint32_t>(bytes), &barrier);
}

using SharedMatrix = emulation::Matrix;
template <int row_bytes> SharedMatrix shared_matrix(const void* at) {
  const emulation::Block& block = emulation::Block::current();
  return {block.shared(), matrix_bits(static_cast<uint32_t>(static_cast<const std::byte*>(at) - block.shared()), row_bytes)};
}

template <int n> void multiply(float (&d)[n / 2], const uint32_t (&a)[4], SharedMatrix b, bool add) {
  emulation::Thread& thread = *emulation::Block::self();
  if (!thread.begun_products) emulation::Block::current().fail("a product without begin_products()");
  thread.products.push_back({d, {a[0], a[1], a[2], a[3]}, b, n, add, thread.product_groups});
}
inline void publish_to_products() {}
template <int count> void take_registers() { emulation::change_registers(count, true); }
template <int count> void give_registers() { emulation::change_registers(count, false); }
template <class... Written> void begin_products(Written&...) { emulation::Block::self()->begun_products = true; }
inline void commit_products() {
  ++emulation::Block::self()->product_groups;
  emulation::Block::self()->begun_products = false;
}
template <int pending, class... Held> void wait_for_products(Held&...) { emulation::make_products(pending); }

}  // namespace slipway::cuda
