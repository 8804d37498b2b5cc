// Stacks that a thread of the host takes up and leaves, and what the sanitizers have to know of them.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <cstdlib>

#ifndef __x86_64__
#error "the emulator switches stacks with instructions of x86-64"
#endif

extern "C" {
void* __tsan_create_fiber(unsigned flags) __attribute__((weak));
void* __tsan_get_current_fiber() __attribute__((weak));
void __tsan_switch_to_fiber(void* fiber, unsigned flags) __attribute__((weak));
void __tsan_acquire(void* address) __attribute__((weak));
void __tsan_release(void* address) __attribute__((weak));
void __sanitizer_start_switch_fiber(void** fake_stack, const void* bottom, size_t size) __attribute__((weak));
void __sanitizer_finish_switch_fiber(void* fake_stack, const void** bottom, size_t* size) __attribute__((weak));

void simt_switch(void** save, void* load);
}
// Saves the registers that a call must keep and the stack pointer, and takes up those of another stack.
asm(R"(
.text
.globl simt_switch
simt_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
)");

namespace simt {

/// Tells ThreadSanitizer that what came before a release of the tag comes before what follows an acquire of it.
inline void acquire(void* tag) {
  if (__tsan_acquire) __tsan_acquire(tag);
}
inline void release(void* tag) {
  if (__tsan_release) __tsan_release(tag);
}

class Stack {
 public:
  /// Makes `main`, which must not return, begin anew at the next switch; the memory stays for good.
  void begin(void (*main)()) {
    if (bottom_ == nullptr) {
      constexpr int kFlags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
      void* memory = mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, kFlags, -1, 0);
      if (memory == MAP_FAILED) std::abort();
      mprotect(memory, 4096, PROT_NONE);
      bottom_ = memory;
      size_ = kBytes;
      if (__tsan_create_fiber) tsan_ = __tsan_create_fiber(0);
    }
    void** top = reinterpret_cast<void**>(static_cast<char*>(const_cast<void*>(bottom_)) + kBytes);
    *--top = nullptr;  // no caller
    *--top = reinterpret_cast<void*>(main);
    for (int i = 0; i < 6; ++i) *--top = nullptr;  // the registers
    pointer_ = top;
    asan_ = nullptr;
  }

  /// For the host's own stack, which exists.
  void adopt() {
    if (tsan_ == nullptr && __tsan_get_current_fiber) tsan_ = __tsan_get_current_fiber();
  }

  /// Goes on where `other` was left; returns when this one is taken up again.
  void leave_for(Stack& other) {
    left = this;
    if (__sanitizer_start_switch_fiber) __sanitizer_start_switch_fiber(&asan_, other.bottom_, other.size_);
    other.tell_tsan();
    simt_switch(&pointer_, other.pointer_);
    arrive();
  }

  /// What is new on a stack must call this first.
  void arrive() {
    if (!__sanitizer_finish_switch_fiber) return;
    const void* bottom;
    size_t size;
    __sanitizer_finish_switch_fiber(asan_, &bottom, &size);
    if (left->bottom_ == nullptr) left->bottom_ = bottom, left->size_ = size;  // the host's own
  }

  void tell_tsan() {
    if (__tsan_switch_to_fiber) __tsan_switch_to_fiber(tsan_, 1);  // 1: a switch orders nothing
  }

 private:
  static constexpr size_t kBytes = 256 << 10;
  static inline Stack* left = nullptr;  // the one that was left last

  void* pointer_ = nullptr;
  const void* bottom_ = nullptr;
  size_t size_ = 0;
  void *asan_ = nullptr, *tsan_ = nullptr;
};

}  // namespace simt
