#include "kv_cache.hpp"

#include <algorithm>
#include <stdexcept>
#include <string>
#include <utility>

namespace slipway {
namespace {

RadixCache::Place place_of(const KvLease& lease, size_t index) {
  return {lease.salt, index ? std::optional(lease.blocks[index - 1]) : std::nullopt};
}

}  // namespace

KvCache::KvCache(int32_t num_blocks, int32_t block_size)
    : block_size_(block_size), pool_(num_blocks), radix_(num_blocks, block_size) {}

int32_t KvCache::blocks_for(int64_t num_tokens) const {
  return static_cast<int32_t>((num_tokens + block_size_ - 1) / block_size_);
}

std::vector<int32_t> KvCache::match(std::span<const int32_t> tokens, uint64_t salt) const {
  std::vector<int32_t> found;
  const auto size = static_cast<size_t>(block_size_);
  for (size_t start = 0; start + size < tokens.size(); start += size) {
    const auto parent = found.empty() ? std::nullopt : std::optional(found.back());
    const auto block = radix_.find({salt, parent}, tokens.subspan(start, size));
    if (!block) break;
    found.push_back(*block);
  }
  return found;
}

int32_t KvCache::cost(std::span<const int32_t> tokens, uint64_t salt) const {
  return cost(std::ssize(tokens), match(tokens, salt));
}

int32_t KvCache::cost(int64_t num_tokens, std::span<const int32_t> prefix) const {
  const auto in_use = std::ranges::count_if(prefix, [this](int32_t block) { return pool_.references(block) > 0; });
  return blocks_for(num_tokens) - static_cast<int32_t>(in_use);
}

KvCache::Prospect::Prospect(const KvCache& cache, std::span<const int32_t> tokens, uint64_t salt)
    : cache_(cache), prefix_(cache.match(tokens, salt)), spare_(cache.num_available() - cache.cost(std::ssize(tokens), prefix_)) {}

void KvCache::Prospect::release(const KvLease& lease) {
  for (size_t i = 0; i < lease.blocks.size(); ++i) {
    const int32_t block = lease.blocks[i];
    const bool is_last = ++released_[block] == cache_.pool_.references(block);
    if (is_last && !(i < prefix_.size() && prefix_[i] == block)) ++spare_;
  }
}

int32_t KvCache::acquire(KvLease& lease, std::span<const int32_t> tokens, uint64_t salt) {
  lease = {.blocks = match(tokens, salt), .num_published = 0, .salt = salt};
  lease.num_published = static_cast<int32_t>(lease.blocks.size());
  for (const int32_t block : lease.blocks) {
    if (pool_.references(block) == 0) radix_.set_referenced(block, true);
    pool_.retain(block);
  }
  if (!grow(lease, static_cast<int64_t>(tokens.size()))) throw std::logic_error("kv cache: acquire() without enough blocks");
  return lease.num_published * block_size_;
}

bool KvCache::grow(KvLease& lease, int64_t num_tokens) {
  const int32_t missing = blocks_for(num_tokens) - static_cast<int32_t>(lease.blocks.size());
  if (missing > num_available()) return false;
  for (int32_t i = 0; i < missing; ++i) lease.blocks.push_back(take());
  return true;
}

int32_t KvCache::take() {
  if (pool_.num_free() == 0)
    if (const auto evicted = radix_.evict()) pool_.give_back(*evicted);
  const auto block = pool_.take();
  if (!block) throw std::logic_error("kv cache: out of blocks that were counted as available");
  return *block;
}

void KvCache::publish(KvLease& lease, std::span<const int32_t> tokens, int64_t num_computed) {
  const auto size = static_cast<size_t>(block_size_);
  for (auto i = static_cast<size_t>(lease.num_published); (i + 1) * size <= static_cast<size_t>(num_computed); ++i) {
    const RadixCache::Place place = place_of(lease, i);
    const auto values = tokens.subspan(i * size, size);
    if (const auto theirs = radix_.find(place, values)) {
      swap_next(lease, *theirs);
    } else {
      radix_.insert(place, values, lease.blocks[i]);
      ++lease.num_published;
    }
  }
}

int32_t KvCache::adopt(KvLease& lease, std::span<const int32_t> tokens) {
  const auto size = static_cast<size_t>(block_size_);
  for (auto i = static_cast<size_t>(lease.num_published); (i + 1) * size < tokens.size(); ++i) {
    const auto theirs = radix_.find(place_of(lease, i), tokens.subspan(i * size, size));
    if (!theirs) break;
    swap_next(lease, *theirs);
  }
  return lease.num_published * block_size_;
}

void KvCache::swap_next(KvLease& lease, int32_t theirs) {
  int32_t& mine = lease.blocks[static_cast<size_t>(lease.num_published++)];
  if (pool_.references(theirs) == 0) radix_.set_referenced(theirs, true);
  pool_.retain(theirs);
  let_go(std::exchange(mine, theirs));
}

std::vector<uint64_t> KvCache::unpublished_keys(const KvLease& lease, std::span<const int32_t> tokens, int64_t end) const {
  std::vector<uint64_t> keys;
  const auto size = static_cast<size_t>(block_size_);
  auto i = static_cast<size_t>(lease.num_published);
  uint64_t key = radix_.key_before(place_of(lease, i));
  for (; (i + 1) * size <= static_cast<size_t>(end); ++i) keys.push_back(key = RadixCache::key_after(key, tokens.subspan(i * size, size)));
  return keys;
}

void KvCache::release(KvLease& lease) {
  for (size_t i = lease.blocks.size(); i-- > 0;) let_go(lease.blocks[i]);
  lease.blocks.clear();
  lease.num_published = 0;
}

void KvCache::let_go(int32_t block) {
  if (pool_.release(block) > 0) return;
  if (radix_.contains(block))
    radix_.set_referenced(block, false);
  else
    pool_.give_back(block);
}

void KvCache::check_integrity(std::span<const KvLease* const> leases) const {
  const auto require = [](bool holds, const char* what) {
    if (!holds) throw std::logic_error(std::string("kv cache: ") + what);
  };
  const auto total = static_cast<size_t>(num_blocks());
  std::vector<int32_t> held(total), free(total);
  for (const KvLease* lease : leases) {
    for (size_t i = 0; i < lease->blocks.size(); ++i) {
      const int32_t block = lease->blocks[i];
      ++held[static_cast<size_t>(block)];
      const bool published = i < static_cast<size_t>(lease->num_published);
      require(radix_.contains(block) == published, "a lease and the tree disagree on what is published");
      require(published || pool_.references(block) == 1, "a block outside the tree is shared");
    }
  }
  for (const int32_t block : pool_.free_blocks()) ++free[static_cast<size_t>(block)];
  for (size_t i = 0; i < total; ++i) {
    const auto block = static_cast<int32_t>(i);
    require(held[i] == pool_.references(block), "a block has other references than the leases hold");
    const int places = free[i] + (held[i] > 0) + (held[i] == 0 && radix_.contains(block));
    require(places == 1, "a block is lost or in two places");
  }
  require(num_free() + num_cached() + num_owned() == num_blocks(), "free + cached + owned is not the total");
  radix_.check_integrity();
}

}  // namespace slipway
