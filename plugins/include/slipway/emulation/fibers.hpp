// Fibers on x86-64: stacks of their own that hand the processor to each other, a few nanoseconds a time.
#pragma once
#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
#include <new>
#include <utility>
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

namespace slipway::emulation {

// Saves the callee's registers and stack pointer at *from and goes on where `to` was saved.
[[gnu::naked, gnu::noinline]] inline void switch_stacks(void** /*from*/, void* /*to*/) {
  asm("push %rbp\n push %rbx\n push %r12\n push %r13\n push %r14\n push %r15\n"
      "mov %rsp, (%rdi)\n mov %rsi, %rsp\n"
      "pop %r15\n pop %r14\n pop %r13\n pop %r12\n pop %rbx\n pop %rbp\n ret\n");
}

// A place where execution can be left and taken up again. The one a thread begins on has no stack of its own.
class Fiber {
 public:
  Fiber() = default;
  explicit Fiber(size_t stack_bytes) : bytes_(stack_bytes) {
    stack_ = static_cast<std::byte*>(mmap(nullptr, stack_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    if (stack_ == MAP_FAILED) throw std::bad_alloc();
    mprotect(stack_, guard_bytes, PROT_NONE);  // an overflow ends the process instead of writing elsewhere
  }
  Fiber(Fiber&& other) noexcept : stack_(std::exchange(other.stack_, nullptr)), bytes_(other.bytes_), top_(other.top_) {}
  Fiber& operator=(Fiber&&) = delete;
  ~Fiber() {
    if (stack_) munmap(stack_, bytes_);
  }

  // The next switch to this fiber calls `entry`, which must not return.
  void begin(void (*entry)()) {
    void** top = reinterpret_cast<void**>(stack_ + bytes_) - 2;
    top[0] = reinterpret_cast<void*>(entry);
    top[1] = nullptr;  // where entry would return to
    top_ = top - 6;    // the registers switch_stacks takes
  }

  void switch_to(Fiber& to) {
#if defined(__SANITIZE_ADDRESS__)
    void* fake = nullptr;
    __sanitizer_start_switch_fiber(&fake, to.stack_ ? to.stack_ : to.own_bottom_, to.stack_ ? to.bytes_ : to.own_bytes_);
    switch_stacks(&top_, to.top_);
    __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#else
    switch_stacks(&top_, to.top_);
#endif
  }

  // To be called first by the entry of a fiber: `from` is the one that switched to it.
  static void arrive([[maybe_unused]] Fiber& from) {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(nullptr, &from.own_bottom_, &from.own_bytes_);
#endif
  }

 private:
  static constexpr size_t guard_bytes = 4096;
  std::byte* stack_ = nullptr;
  size_t bytes_ = 0;
  void* top_ = nullptr;
#if defined(__SANITIZE_ADDRESS__)
  const void* own_bottom_ = nullptr;  // of a fiber without a stack of its own
  size_t own_bytes_ = 0;
#endif
};

}  // namespace slipway::emulation
