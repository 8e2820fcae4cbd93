// A tree over full KV blocks: a node is one block, its path from the root spells the tokens from position 0.
//
// A node's index is its block's. Each salt has its own root, so tenants never meet. Children are found through one hash
// table keyed by (parent, tokens) and compared token by token. Whoever holds a node holds its whole path; so an
// unreferenced node has only unreferenced nodes below it, and all of them can be evicted, leaves first.
#pragma once
#include <cstdint>
#include <optional>
#include <set>
#include <span>
#include <unordered_map>
#include <utility>
#include <vector>

namespace slipway {

class RadixCache {
 public:
  // What identifies a child: its parent (none: the salt's root) and its block's tokens.
  struct Place {
    uint64_t salt;
    std::optional<int32_t> parent;
  };

  RadixCache(int32_t num_blocks, int32_t block_size);

  // A block's key stands for all tokens up to its end: it follows from the key before it. Equal keys may, rarely, lie.
  uint64_t key_before(Place place) const;
  static uint64_t key_after(uint64_t before, std::span<const int32_t> tokens);

  std::optional<int32_t> find(Place place, std::span<const int32_t> tokens) const;  // tokens: exactly one block
  void insert(Place place, std::span<const int32_t> tokens, int32_t block);         // referenced; must not be there yet
  void set_referenced(int32_t block, bool referenced);  // a block's first reference has come, or its last has gone
  std::optional<int32_t> evict();                       // removes the least recently used unreferenced leaf

  bool contains(int32_t block) const { return node(block).present; }
  int32_t num_unreferenced() const { return num_unreferenced_; }

  // Throws std::logic_error if the tree contradicts itself.
  void check_integrity() const;

 private:
  struct Node {
    uint64_t key = 0;
    uint64_t last_used = 0;
    Place place{};
    int32_t num_children = 0;
    bool present = false;
    bool referenced = false;
  };

  const Node& node(int32_t block) const { return nodes_[static_cast<size_t>(block)]; }
  Node& node(int32_t block) { return nodes_[static_cast<size_t>(block)]; }
  std::span<const int32_t> tokens(int32_t block) const;
  bool is_evictable(const Node& node) const { return node.present && !node.referenced && node.num_children == 0; }
  void remove(int32_t block);

  size_t block_size_;
  std::vector<Node> nodes_;        // [num_blocks]
  std::vector<int32_t> tokens_;    // [num_blocks, block_size]
  std::unordered_multimap<uint64_t, int32_t> children_;  // key -> node
  std::set<std::pair<uint64_t, int32_t>> evictable_;     // (last_used, node): unreferenced leaves
  uint64_t clock_ = 0;
  int32_t num_unreferenced_ = 0;
};

}  // namespace slipway
