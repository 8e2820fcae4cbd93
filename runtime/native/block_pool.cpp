#include "block_pool.hpp"

#include <numeric>

namespace slipway {

BlockPool::BlockPool(int32_t num_blocks) : references_(static_cast<size_t>(num_blocks)), free_(static_cast<size_t>(num_blocks)) {
  std::iota(free_.rbegin(), free_.rend(), 0);  // block 0 goes out first
}

std::optional<int32_t> BlockPool::take() {
  if (free_.empty()) return std::nullopt;
  const int32_t block = free_.back();
  free_.pop_back();
  retain(block);
  return block;
}

void BlockPool::retain(int32_t block) {
  if (references_[static_cast<size_t>(block)]++ == 0) ++num_owned_;
}

int32_t BlockPool::release(int32_t block) {
  const int32_t left = --references_[static_cast<size_t>(block)];
  if (left == 0) --num_owned_;
  return left;
}

void BlockPool::give_back(int32_t block) { free_.push_back(block); }

}  // namespace slipway
