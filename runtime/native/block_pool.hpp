// Which KV blocks are free, and how many sequences hold each of the others.
#pragma once
#include <cstdint>
#include <optional>
#include <vector>

namespace slipway {

class BlockPool {
 public:
  explicit BlockPool(int32_t num_blocks);

  int32_t num_blocks() const { return static_cast<int32_t>(references_.size()); }
  int32_t num_free() const { return static_cast<int32_t>(free_.size()); }
  int32_t num_owned() const { return num_owned_; }  // blocks with references
  int32_t references(int32_t block) const { return references_[static_cast<size_t>(block)]; }

  std::optional<int32_t> take();       // a free block, with one reference
  void retain(int32_t block);
  int32_t release(int32_t block);      // the references left; at 0 the block is still not free
  void give_back(int32_t block);       // without references -> free
  const std::vector<int32_t>& free_blocks() const { return free_; }

 private:
  std::vector<int32_t> references_;
  std::vector<int32_t> free_;
  int32_t num_owned_ = 0;
};

}  // namespace slipway
