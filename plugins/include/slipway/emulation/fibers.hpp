// Fibers on x86-64: stacks of their own that hand the processor to each other, a few nanoseconds a time.
#pragma once
#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
#include <new>
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

namespace slipway::emulation {

inline constexpr size_t stack_bytes = (256 << 10) + 17 * 64;  // not a power of two: the tops of stacks would share their sets of a cache

// Saves the callee's registers and stack pointer at *from and goes on where `to` was saved.
[[gnu::naked, gnu::noinline]] inline void switch_stacks(void** /*from*/, void* /*to*/) {
  asm("push %rbp\n push %rbx\n push %r12\n push %r13\n push %r14\n push %r15\n"
      "mov %rsp, (%rdi)\n mov %rsi, %rsp\n"
      "pop %r15\n pop %r14\n pop %r13\n pop %r12\n pop %rbx\n pop %rbp\n ret\n");
}

// The stacks of `count` fibers in one mapping: a process may have some 65,000 of them, fewer than the threads that all kernels of a few
// engines keep. Huge pages would back what no stack has touched. Each has its canary below it, in the top of the one before.
class Stacks {
 public:
  explicit Stacks(size_t count) : bytes_((count + 1) * stack_bytes) {
    memory_ = static_cast<std::byte*>(mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    if (memory_ == MAP_FAILED) throw std::bad_alloc();
    madvise(memory_, bytes_, MADV_NOHUGEPAGE);
  }
  Stacks(Stacks&&) = delete;
  ~Stacks() { munmap(memory_, bytes_); }

  std::byte* operator[](size_t fiber) const { return memory_ + (fiber + 1) * stack_bytes; }

 private:
  std::byte* memory_;
  size_t bytes_;
};

// A place where execution can be left and taken up again. The one a thread begins on has no stack of its own.
class Fiber {
 public:
  Fiber() = default;
  explicit Fiber(std::byte* stack) : stack_(stack) { below() = canary; }
  Fiber(Fiber&&) = delete;

  // The next switch to this fiber calls `entry`, which must not return.
  void begin(void (*entry)()) {
    void** top = reinterpret_cast<void**>(stack_ + stack_bytes) - 4;
    top[0] = reinterpret_cast<void*>(entry);
    top[1] = nullptr;  // where entry would return to
    top_ = top - 6;    // the registers switch_stacks takes
  }

  void switch_to(Fiber& to) {
#if defined(__SANITIZE_ADDRESS__)
    void* fake = nullptr;
    __sanitizer_start_switch_fiber(&fake, to.stack_ ? to.stack_ : to.own_bottom_, to.stack_ ? stack_bytes : to.own_bytes_);
    switch_stacks(&top_, to.top_);
    __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#else
    switch_stacks(&top_, to.top_);
#endif
  }

  // Whether it wrote beyond the end of its stack: into that of another, which cannot go on.
  bool overflowed() const { return below() != canary; }

  // To be called first by the entry of a fiber: `from` is the one that switched to it.
  static void arrive([[maybe_unused]] Fiber& from) {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(nullptr, &from.own_bottom_, &from.own_bytes_);
#endif
  }

 private:
  static constexpr uint64_t canary = 0x5afe57ac5afe57ac;
  uint64_t& below() const { return reinterpret_cast<uint64_t*>(stack_)[-1]; }

  std::byte* stack_ = nullptr;
  void* top_ = nullptr;
#if defined(__SANITIZE_ADDRESS__)
  const void* own_bottom_ = nullptr;  // of a fiber without a stack of its own
  size_t own_bytes_ = 0;
#endif
};

}  // namespace slipway::emulation
