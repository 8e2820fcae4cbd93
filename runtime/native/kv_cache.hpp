// The paged KV cache: which block holds which positions of which sequence.
//
// A block is free, cached (in the tree, without references) or owned (referenced); free + cached + owned == total after every
// call. Full blocks of committed tokens are published to the tree and shared from then on; the partly filled tail, and whatever
// a step wrote for draft tokens, belongs to one sequence. Nothing is ever copied: a fork (n > 1) finds the full blocks of
// its prompt in the tree and computes the tail again. At least the last token of a sequence is always computed, because its
// logits are wanted. A published block is never written again.
#pragma once
#include <cstdint>
#include <span>
#include <unordered_map>
#include <vector>

#include "block_pool.hpp"
#include "radix_cache.hpp"

namespace slipway {

// What one sequence holds. Owned by the sequence, changed by KvCache alone; must be released before it dies.
struct KvLease {
  std::vector<int32_t> blocks;  // block i holds positions [i * block_size, ...): the sequence's row of the block table
  int32_t num_published = 0;    // the first blocks are in the tree
  uint64_t salt = 0;
};

class KvCache {
 public:
  KvCache(int32_t num_blocks, int32_t block_size);

  int32_t block_size() const { return block_size_; }
  int32_t num_blocks() const { return pool_.num_blocks(); }
  int32_t num_free() const { return pool_.num_free(); }
  int32_t num_cached() const { return radix_.num_unreferenced(); }
  int32_t num_owned() const { return pool_.num_owned(); }
  int32_t num_available() const { return num_free() + num_cached(); }  // what can be taken, evicting if need be
  int32_t blocks_for(int64_t num_tokens) const;

  // Blocks among the available that acquire() would use up for these tokens, cached prefix included.
  int32_t cost(std::span<const int32_t> tokens, uint64_t salt) const;
  // Room for `tokens`: the longest cached prefix of whole blocks, short of the last token, and fresh blocks for the rest.
  // Needs cost() <= num_available(). Returns the number of cached tokens.
  int32_t acquire(KvLease& lease, std::span<const int32_t> tokens, uint64_t salt);
  // Room for num_tokens in all; false, and nothing changed, if there are too few blocks.
  bool grow(KvLease& lease, int64_t num_tokens);
  // Blocks behind the published ones that others have published since acquire() take the place of the lease's own, as long as
  // the last token stays to be computed. Returns the number of published tokens.
  int32_t adopt(KvLease& lease, std::span<const int32_t> tokens);
  // Keys of the prefixes that end in the full blocks behind the published ones, up to tokens[0, end).
  std::vector<uint64_t> unpublished_keys(const KvLease& lease, std::span<const int32_t> tokens, int64_t end) const;
  // The blocks that tokens[0, num_computed) fill go to the tree. Where the tree has such a block already, the lease changes to
  // that one and its own becomes free: only between steps.
  void publish(KvLease& lease, std::span<const int32_t> tokens, int64_t num_computed);
  void release(KvLease& lease);

  // How much room a sequence would have if leases were released: they stay as they are.
  class Prospect {
   public:
    Prospect(const KvCache& cache, std::span<const int32_t> tokens, uint64_t salt);
    void release(const KvLease& lease);
    // num_available() less cost(): a block of the sequence's own prefix adds to neither when the last lease lets go of it.
    int32_t spare() const { return spare_; }

   private:
    const KvCache& cache_;
    const std::vector<int32_t> prefix_;
    std::unordered_map<int32_t, int32_t> released_;  // references, by block
    int32_t spare_;
  };

  // Throws std::logic_error if a block is lost, in two places, or has other references than `leases` hold.
  void check_integrity(std::span<const KvLease* const> leases) const;

 private:
  int32_t take();
  std::vector<int32_t> match(std::span<const int32_t> tokens, uint64_t salt) const;
  int32_t cost(int64_t num_tokens, std::span<const int32_t> prefix) const;
  void swap_next(KvLease& lease, int32_t theirs);
  void let_go(int32_t block);

  int32_t block_size_;
  BlockPool pool_;
  RadixCache radix_;
};

}  // namespace slipway
