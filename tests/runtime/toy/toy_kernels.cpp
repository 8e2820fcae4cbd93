// The kernels of a toy model whose next token is known: a hash of every token before it, read back out of the KV cache.
//
// A wrong block, a stale prefix or a lost row shows as a wrong token. One layer; a token takes 4 bytes of cache.
#include <cstring>
#include <limits>
#include <stdexcept>
#include <unistd.h>

#include "slipway/abi.hpp"

using namespace slipway;

namespace {

constexpr int block_size = 4;

int32_t& cached(const Call& call, int seq, int position) {
  const int32_t block = call.batch->block_table[seq * call.batch->max_blocks + position / block_size];
  return reinterpret_cast<int32_t*>(call.kv)[block * block_size + position % block_size];
}

int sequence_of(const Batch& batch, int row) {
  int seq = 0;
  while (batch.cu_seqlens[seq + 1] <= row) ++seq;
  return seq;
}

}  // namespace

extern "C" void toy_remember(const Call& call) {
  const auto [begin, end] = call.share(call.rows);
  for (auto row = begin; row < end; ++row) {
    const int seq = sequence_of(*call.batch, row);
    cached(call, seq, call.batch->positions[row]) = call.batch->token_ids[row];
    *call.outputs[0].row<int32_t>(row) = call.batch->token_ids[row];
  }
}

extern "C" void toy_recall(const Call& call) {
  for (int64_t row; (row = call.tickets[0].claim(1)) < call.rows;) {
    const int seq = sequence_of(*call.batch, row);
    uint32_t hash = 2166136261u;
    for (int p = 0; p <= call.batch->positions[row]; ++p) hash = (hash ^ static_cast<uint32_t>(cached(call, seq, p) + 1)) * 16777619u;
    *reinterpret_cast<uint32_t*>(call.local) = hash;  // by way of the thread's own scratch
    *call.outputs[0].row<uint32_t>(row) = *reinterpret_cast<uint32_t*>(call.local);
  }
}

// Copies its history with the period of the weight: what the prompt said comes again.
extern "C" void toy_parrot(const Call& call) {
  const int period = *reinterpret_cast<const int32_t*>(call.weights[0]);
  const auto [begin, end] = call.share(call.rows);
  for (auto row = begin; row < end; ++row) {
    const int seq = sequence_of(*call.batch, row), from = call.batch->positions[row] + 1 - period;
    *call.outputs[0].row<int32_t>(row) = from < 0 ? 0 : cached(call, seq, from);
  }
}

extern "C" void toy_gather(const Call& call) {
  const auto [begin, end] = call.share(call.rows);
  for (auto row = begin; row < end; ++row)
    std::memcpy(call.outputs[0].row<uint32_t>(row), call.inputs[0].row<uint32_t>(call.batch->logit_rows[row]), 4);
}

// weights: next token by hash % vocab, i32 [vocab]. The winner's logit is 8, the runner-up's 6, the others' below.
extern "C" void toy_unembed(const Call& call) {
  const auto* next = reinterpret_cast<const int32_t*>(call.weights[0]);
  const int vocab = VOCAB;
  const auto [begin, end] = call.share(vocab);
  for (int row = 0; row < call.rows; ++row) {
    const int winner = next[*call.inputs[0].row<uint32_t>(row) % vocab];
    float* logits = call.outputs[0].row<float>(row);
    for (auto v = begin; v < end; ++v) logits[v] = -static_cast<float>((v - winner + vocab) % vocab) / vocab;
    for (auto v = begin; v < end; ++v)
      if (v == winner) logits[v] = 8;
      else if (v == (winner + 1) % vocab) logits[v] = 6;
  }
}

extern "C" void toy_dawdle(const Call& call) {
  if (call.rank == 0) usleep(1000);
}

// Fails for whoever says 255: logits that are no numbers.
extern "C" void toy_choke(const Call& call) {
  for (int row = call.rank; row < call.rows; row += call.size)
    if (call.batch->token_ids[call.batch->logit_rows[row]] == 255)
      for (int v = 0; v < VOCAB; ++v) call.outputs[0].row<float>(row)[v] = std::numeric_limits<float>::quiet_NaN();
}

// Throws, which no kernel may, at whoever begins with 254: on one thread that ends the engine.
extern "C" void toy_break(const Call& call) {
  for (int row = 0; row < call.rows; ++row)
    if (const int at = call.batch->logit_rows[row]; call.batch->positions[at] == 0 && call.batch->token_ids[at] == 254) throw std::runtime_error("the toy broke");
}

// Adds one to what every thread added: all of them, once each, have met at the barrier in between.
extern "C" void toy_count(const Call& call) {
  auto* shared = reinterpret_cast<std::atomic<int32_t>*>(call.shared);
  if (call.rank == 0) shared->store(0);
  call.sync();
  shared->fetch_add(1);
  call.sync();
  if (shared->load() != call.size) abort();
}
