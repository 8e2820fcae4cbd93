// What paged attention's Fetch asks for, one address after the other.
#include "paged_attention/layout.hpp"

namespace {

int64_t asked, room;
const void** addresses;

void record(const void* at) {
  if (asked < room) addresses[asked] = at;
  ++asked;
}

}  // namespace

// Takes `taken` steps of a fetch made for `steps`; -> how many lines it asked for, their addresses in `into`.
extern "C" int64_t fetched(const void* const* heads, int count, int64_t offset, int64_t bytes, int64_t steps, int64_t taken, const void** into,
                           int64_t size) {
  slipway::paged_attention::Blocks blocks;
  blocks.count = count;
  for (int i = 0; i < count; ++i) blocks.heads[i] = static_cast<const std::byte*>(heads[i]);
  asked = 0, room = size, addresses = into;
  slipway::paged_attention::FetchBy<record> fetch(blocks, offset, bytes, steps);
  for (int64_t step = 0; step < taken; ++step) fetch.step();
  return asked;
}
