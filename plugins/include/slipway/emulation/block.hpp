// A block of CUDA threads on one thread of the host: a fiber each, run in an order that a seed shuffles.
//
// A warp runs until each of its threads waits for others or has ended, then another one does, of this block or of others that are
// resident with it: what lacks a barrier reads what is not written yet, with some seed. Shared memory holds NaN when a block begins and
// ends at a page nobody may touch. What hardware leaves undefined is an error here: threads of a warp that meet at different operations,
// barriers that not all of a block reach, copies that are read before they were waited for (async_copies.hpp), threads that never wait for
// the kernel before.
#pragma once
#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <memory>
#include <optional>
#include <vector>

#include "slipway/emulation/fibers.hpp"
#include "slipway/emulation/launch.hpp"

namespace slipway::emulation {

struct Index {
  uint32_t x = 0, y = 0, z = 0;
};

inline constexpr int warp_size = 32;

// Numbers that look random (SplitMix64, public domain).
struct Random {
  uint64_t state;
  uint64_t next() {
    uint64_t z = state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
  }
  uint64_t below(uint64_t end) { return next() % end; }
  template <class T> void shuffle(T* values, uint64_t count) {
    for (uint64_t i = count; i > 1; --i) std::swap(values[i - 1], values[below(i)]);
  }
};

// What the threads of a warp bring to an operation they do together, and what they take from it. Two sets, which take turns: all
// have read the one before last when the last of them arrives.
struct Meeting {
  struct Slot {
    alignas(16) std::byte bytes[96];
  };
  const char* operation = nullptr;
  int arrived = 0;
  uint64_t number = 0;
  Slot slots[2][warp_size];
};

struct AsyncCopy {
  std::byte* to;
  const std::byte* from;  // null: zeros
  uint32_t bytes;
  uint64_t group;
};

// A matrix in shared memory, by its descriptor; addresses in it count from the block's shared memory on.
struct Matrix {
  const std::byte* shared;
  uint64_t bits;
};

// What a thread brings to a product of its warpgroup.
struct Product {
  float* d;
  uint32_t a[4];
  Matrix b;
  int n;
  bool add;
  uint64_t group;
};

// Into shared memory, by nobody in particular.
struct BulkCopy {
  std::byte* to;
  const std::byte* from;
  uint32_t bytes;
  void* barrier;
};

struct Thread {
  explicit Thread(std::byte* stack) : fiber(stack) {}

  Fiber fiber;
  Index index;
  int rank = 0;
  bool done = false;
  bool waited = false;            // for the kernel before
  std::vector<AsyncCopy> copies;  // issued and not yet made
  uint64_t copy_groups = 0;       // committed
  std::vector<Product> products;  // likewise
  uint64_t product_groups = 0;
  bool begun_products = false;
  int registers = 0;              // 0: as many as when the block began
};

struct Warp {
  Meeting meeting;
  int live = 0;
  uint64_t products = 0;  // made
};

// Memory whose last byte, up to `alignment`, is followed by a page that may not be touched.
class GuardedBytes {
 public:
  std::byte* at_least(size_t bytes) {
    const size_t needed = (bytes + page - 1) / page * page;
    if (needed > room_) {
      if (room_) munmap(pages_, room_ + page);
      pages_ = static_cast<std::byte*>(mmap(nullptr, needed + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
      if (pages_ == MAP_FAILED) throw std::bad_alloc();
      mprotect(pages_ + needed, page, PROT_NONE);
      room_ = needed;
    }
    return pages_ + room_ - (bytes + alignment - 1) / alignment * alignment;
  }
  GuardedBytes() = default;
  GuardedBytes(GuardedBytes&&) = delete;
  ~GuardedBytes() {
    if (room_) munmap(pages_, room_ + page);
  }

 private:
  static constexpr size_t page = 4096, alignment = 1024;  // bulk copies and swizzles want tiles at such boundaries
  std::byte* pages_ = nullptr;
  size_t room_ = 0;
};

class Block {
 public:
  using Body = void (*)(const void* arguments);  // of one thread

  // Runs the blocks of a launch that are still to be claimed, some of them at once.
  static void run_all(const Launch& launch, Body body) {
    const uint64_t count = launch.grid.count(), turn = launch.seed ? Random{launch.seed}.below(count) : 0;
    static thread_local std::vector<std::unique_ptr<Block>> blocks;
    Random random{launch.seed ^ count};
    std::vector<std::pair<Block*, int>> warps;
    std::vector<Block*> idle, busy;
    for (size_t i = 0; i < (launch.seed ? most_resident : 1); ++i) {
      if (blocks.size() == i) blocks.push_back(std::unique_ptr<Block>(new Block));
      idle.push_back(blocks[i].get());
    }
    for (;;) {
      for (uint64_t claimed; !idle.empty() && (claimed = launch.next_block->fetch_add(1)) < count; idle.pop_back()) {
        busy.push_back(idle.back());
        busy.back()->begin(launch, (claimed + turn) % count, body);
      }
      if (busy.empty()) return;
      warps.clear();
      for (Block* block : busy)
        for (int warp = 0; warp < static_cast<int>(block->warps_.size()); ++warp) warps.emplace_back(block, warp);
      if (launch.seed) random.shuffle(warps.data(), warps.size());
      bool progressed = false;
      const size_t some = launch.seed ? 1 + random.below(warps.size()) : warps.size();  // the others may stay far behind
      for (size_t i = 0; i < warps.size() && (i < some || !progressed); ++i) progressed |= warps[i].first->run_warp(warps[i].second);
      if (!progressed) busy.front()->report("deadlock: a barrier, or a flag, that not all threads reach or that nobody sets", nullptr);
      if (launch.failed->load()) return;
      std::erase_if(busy, [&](Block* block) {
        if (block->live_) return false;
        idle.push_back(block);
        return true;
      });
    }
  }

  static Block& current() { return *running(); }
  static Thread*& self() {
    static thread_local Thread* thread;
    return thread;
  }

  const Launch& launch() const { return *launch_; }
  Index index() const { return index_; }
  std::byte* shared() const { return shared_; }
  Random& random() { return random_; }
  int& free_registers() { return free_registers_; }  // that some threads gave and none has taken
  std::vector<BulkCopy>& bulk_copies() { return bulk_copies_; }
  Thread& thread(int rank) { return *threads_[static_cast<size_t>(rank)]; }
  void note_progress() { ++progress_; }
  template <class Condition> void wait_until(Condition is_so) {
    while (!is_so()) yield();
  }
  Warp& warp(const Thread& thread) { return warps_[static_cast<size_t>(thread.rank / warp_size)]; }

  // __syncthreads: of all threads of the block that have not ended. Whether any of them brought true.
  bool wait_for_block(bool mine = false) {
    const uint64_t number = barrier_number_;
    barrier_any_[number % 2] |= mine;
    if (++barrier_arrived_ == live_)
      open_barrier();
    else
      while (barrier_number_ == number) yield();
    return barrier_any_[number % 2];
  }

  // An operation of all 32 threads of a warp. Each brings `mine`; the last to arrive calls all(slots); each takes what its slot holds then.
  template <class Brought, class All> const Meeting::Slot* meet(const char* operation, const Brought& mine, All all) {
    static_assert(sizeof mine <= sizeof(Meeting::Slot));
    Thread& thread = *self();
    Warp& of = warp(thread);
    Meeting& meeting = of.meeting;
    if (of.live != warp_size) fail("%s by %d threads of a warp: all 32 must be there", operation, of.live);
    if (meeting.arrived && std::strcmp(meeting.operation, operation))
      fail("threads of a warp meet at %s and at %s", meeting.operation, operation);
    meeting.operation = operation;
    Meeting::Slot* slots = meeting.slots[meeting.number % 2];
    std::memcpy(&slots[thread.rank % warp_size], &mine, sizeof mine);
    const uint64_t number = meeting.number;
    if (++meeting.arrived == warp_size) {
      all(slots);
      meeting.arrived = 0;
      ++meeting.number;
      ++progress_;
    } else {
      while (meeting.number == number) yield();
    }
    return slots;
  }

  // Ends the launch with a sentence; does not return.
  [[gnu::format(printf, 2, 3)]] void fail(const char* format, ...) {
    char text[error_bytes / 2];
    va_list values;
    va_start(values, format);
    std::vsnprintf(text, sizeof text, format, values);
    va_end(values);
    report(text, self());
    abandoned_ = true;
    for (;;) yield();
  }

 private:
  static constexpr size_t most_resident = 8;

  Block() = default;

  static Block*& running() {
    static thread_local Block* block;
    return block;
  }

  void begin(const Launch& launch, uint64_t number, Body body) {
    launch_ = &launch;
    body_ = body;
    index_ = {static_cast<uint32_t>(number % launch.grid.x), static_cast<uint32_t>(number / launch.grid.x % launch.grid.y),
              static_cast<uint32_t>(number / launch.grid.x / launch.grid.y)};
    random_ = {launch.seed ^ number * 0x2545f4914f6cdd1du};
    begin_threads();
    shared_ = guarded_.at_least(launch.shared_bytes);
    std::memset(shared_, 0xff, launch.shared_bytes);
  }

  void begin_threads() {
    const size_t count = launch_->block.count();
    if (threads_.size() < count) {
      threads_.clear();
      stacks_.emplace(count);
      for (size_t i = 0; i < count; ++i) threads_.push_back(std::make_unique<Thread>((*stacks_)[i]));
    }
    warps_.resize((count + warp_size - 1) / warp_size);
    for (Warp& warp : warps_) warp.live = 0, warp.meeting.arrived = 0, warp.products = 0;
    bulk_copies_.clear();
    free_registers_ = 0;
    for (size_t i = 0; i < count; ++i) {
      Thread& thread = *threads_[i];
      const auto rank = static_cast<uint32_t>(i);
      const Extent& shape = launch_->block;
      thread.index = {rank % shape.x, rank / shape.x % shape.y, rank / shape.x / shape.y};
      thread.rank = static_cast<int>(i);
      thread.done = thread.waited = false;
      thread.copies.clear();
      thread.copy_groups = thread.product_groups = 0;
      thread.products.clear();
      thread.begun_products = false;
      thread.registers = 0;
      thread.fiber.begin(&Block::enter);
      ++warp(thread).live;
    }
    live_ = static_cast<int>(count);
    barrier_arrived_ = 0;
    barrier_any_[0] = barrier_any_[1] = false;
    abandoned_ = false;
    lane_order_.resize(count);
    for (size_t i = 0; i < count; ++i) lane_order_[i] = static_cast<int>(i);
    if (!launch_->seed) return;
    for (size_t first = 0; first < count; first += warp_size) random_.shuffle(&lane_order_[first], std::min<size_t>(warp_size, count - first));
  }

  // Until none of its threads gets any further; whether any did.
  bool run_warp(int warp) {
    running() = this;
    const uint64_t at_first = progress_;
    const size_t first = static_cast<size_t>(warp) * warp_size, end = std::min(first + warp_size, lane_order_.size());
    for (uint64_t before = progress_ - 1; before != progress_ && !abandoned_;) {
      before = progress_;
      for (size_t i = first; i < end && !abandoned_; ++i) {
        Thread& thread = *threads_[static_cast<size_t>(lane_order_[i])];
        if (thread.done) continue;
        self() = &thread;
        scheduler_.switch_to(thread.fiber);
        if (thread.fiber.overflowed()) {
          report("its stack in the emulation is too small", &thread);
          abandoned_ = true;
        }
      }
    }
    return progress_ != at_first;
  }

  static void enter() {
    Block& block = current();
    Fiber::arrive(block.scheduler_);
    block.body_(block.launch_->arguments);
    Thread& thread = *self();
    if (!thread.waited) block.fail("ends without a wait_for_previous()");
    if (!thread.products.empty()) block.fail("ends before its products");
    if (block.live_ == 1) block.check_end();
    thread.done = true;
    --block.warp(thread).live;
    ++block.progress_;
    if (--block.live_ && block.barrier_arrived_ == block.live_) block.open_barrier();
    thread.fiber.switch_to(block.scheduler_);
  }

  // The last thread ends.
  void check_end() {
    if (!bulk_copies_.empty()) fail("ends before a bulk copy into its shared memory");
    for (size_t i = 0; i < warps_.size(); ++i)
      if (const size_t first = i / 4 * 4; warps_[i].products != warps_[first].products && first + 3 < warps_.size()) fail("warps of a warpgroup do not multiply together");
  }

  void yield() { self()->fiber.switch_to(scheduler_); }

  void open_barrier() {
    barrier_arrived_ = 0;
    barrier_any_[++barrier_number_ % 2] = false;
    ++progress_;
  }

  void report(const char* text, const Thread* thread) {
    if (launch_->failed->exchange(true)) return;  // somebody else's is told
    const auto put = [&](const char* format, auto... values) { std::snprintf(launch_->error, error_bytes, format, values...); };
    if (thread)
      put("block (%u, %u, %u), thread %d: %s", index_.x, index_.y, index_.z, thread->rank, text);
    else
      put("block (%u, %u, %u): %s", index_.x, index_.y, index_.z, text);
  }

  const Launch* launch_ = nullptr;
  Body body_ = nullptr;
  Index index_;
  Random random_{0};
  std::optional<Stacks> stacks_;
  std::vector<std::unique_ptr<Thread>> threads_;
  std::vector<Warp> warps_;
  int free_registers_ = 0;
  std::vector<BulkCopy> bulk_copies_;  // issued and not yet made
  std::vector<int> lane_order_;  // those of each warp together
  Fiber scheduler_;
  GuardedBytes guarded_;
  std::byte* shared_ = nullptr;
  int live_ = 0, barrier_arrived_ = 0;
  bool barrier_any_[2] = {};  // of the last barrier and of the next
  uint64_t barrier_number_ = 0, progress_ = 0;
  bool abandoned_ = false;
};

}  // namespace slipway::emulation
