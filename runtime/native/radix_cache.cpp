#include "radix_cache.hpp"

#include <algorithm>
#include <stdexcept>
#include <string>
#include <utility>

namespace slipway {
namespace {

uint64_t mix(uint64_t hash, uint64_t word) {  // splitmix64's finaliser
  uint64_t x = hash + 0x9E3779B97F4A7C15u + word;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
  return x ^ (x >> 31);
}

}  // namespace

RadixCache::RadixCache(int32_t num_blocks, int32_t block_size)
    : block_size_(static_cast<size_t>(block_size)),
      nodes_(static_cast<size_t>(num_blocks)),
      tokens_(static_cast<size_t>(num_blocks) * block_size_) {}

std::span<const int32_t> RadixCache::tokens(int32_t block) const {
  return std::span(tokens_).subspan(static_cast<size_t>(block) * block_size_, block_size_);
}

uint64_t RadixCache::key_before(Place place) const { return place.parent ? node(*place.parent).key : mix(0, place.salt); }

uint64_t RadixCache::key_after(uint64_t before, std::span<const int32_t> tokens) {
  uint64_t key = before;
  for (const int32_t token : tokens) key = mix(key, static_cast<uint32_t>(token));
  return key;
}

std::optional<int32_t> RadixCache::find(Place place, std::span<const int32_t> tokens) const {
  const auto [begin, end] = children_.equal_range(key_after(key_before(place), tokens));
  const auto found = std::find_if(begin, end, [&](const auto& entry) {
    const Place& at = node(entry.second).place;
    return at.salt == place.salt && at.parent == place.parent && std::ranges::equal(this->tokens(entry.second), tokens);
  });
  return found == end ? std::nullopt : std::optional(found->second);
}

void RadixCache::insert(Place place, std::span<const int32_t> tokens, int32_t block) {
  const uint64_t key = key_after(key_before(place), tokens);
  node(block) = {.key = key, .place = place, .present = true, .referenced = true};
  std::ranges::copy(tokens, tokens_.begin() + static_cast<ptrdiff_t>(static_cast<size_t>(block) * block_size_));
  children_.emplace(key, block);
  if (place.parent) ++node(*place.parent).num_children;
}

void RadixCache::set_referenced(int32_t block, bool referenced) {
  Node& at = node(block);
  if (referenced) {
    evictable_.erase({at.last_used, block});
    --num_unreferenced_;
  } else {
    at.last_used = ++clock_;
    ++num_unreferenced_;
  }
  at.referenced = referenced;
  if (is_evictable(at)) evictable_.insert({at.last_used, block});
}

std::optional<int32_t> RadixCache::evict() {
  if (evictable_.empty()) return std::nullopt;
  const int32_t block = evictable_.begin()->second;
  remove(block);
  return block;
}

void RadixCache::remove(int32_t block) {
  const Node at = std::exchange(node(block), {});
  evictable_.erase({at.last_used, block});
  --num_unreferenced_;
  const auto [begin, end] = children_.equal_range(at.key);
  children_.erase(std::find_if(begin, end, [block](const auto& entry) { return entry.second == block; }));
  if (!at.place.parent) return;
  Node& parent = node(*at.place.parent);
  --parent.num_children;
  if (is_evictable(parent)) evictable_.insert({parent.last_used, *at.place.parent});
}

void RadixCache::check_integrity() const {
  const auto require = [](bool holds, const char* what) {
    if (!holds) throw std::logic_error(std::string("radix cache: ") + what);
  };
  std::vector<int32_t> children(nodes_.size());
  int32_t unreferenced = 0;
  size_t present = 0;
  for (const Node& at : nodes_) {
    if (!at.present) continue;
    ++present;
    unreferenced += !at.referenced;
    if (!at.place.parent) continue;
    const Node& parent = node(*at.place.parent);
    ++children[static_cast<size_t>(*at.place.parent)];
    require(parent.present && parent.place.salt == at.place.salt, "a node hangs below a parent that is not there");
    require(parent.referenced || !at.referenced, "a referenced node hangs below an unreferenced one");
  }
  require(unreferenced == num_unreferenced_, "the unreferenced nodes are miscounted");
  require(present == children_.size(), "the child table has lost or kept nodes");
  for (size_t i = 0; i < nodes_.size(); ++i) {
    const auto block = static_cast<int32_t>(i);
    const Node& at = nodes_[i];
    require(children[i] == at.num_children, "children are miscounted");
    require(evictable_.contains({at.last_used, block}) == is_evictable(at), "a node is in the wrong list");
    require(!at.present || find(at.place, tokens(block)) == block, "a node cannot be found");
  }
}

}  // namespace slipway
