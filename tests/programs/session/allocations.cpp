#include "allocations.h"

#include <dlfcn.h>
#include <execinfo.h>

#include <cstdlib>
#include <cstring>
#include <new>

extern "C" void* __libc_malloc(size_t size);
extern "C" void* __libc_calloc(size_t count, size_t size);
extern "C" void* __libc_realloc(void* memory, size_t size);

namespace {

thread_local bool counting = false;
thread_local int ours = 0;

bool is_allocator(const char* library) {
  const char* name = std::strrchr(library, '/');
  return std::strstr(name ? name : library, "libstdc++") || std::strstr(name ? name : library, "libc.so");
}

void note() {
  if (!counting) return;
  counting = false;  // the look-up may allocate
  void* frames[24];
  const int depth = backtrace(frames, 24);
  Dl_info program{}, caller{};
  dladdr(reinterpret_cast<void*>(&note), &program);
  for (int i = 0; i < depth; ++i) {
    const bool known = dladdr(frames[i], &caller) && caller.dli_fbase != program.dli_fbase;
    if (!known || is_allocator(caller.dli_fname)) continue;
    if (std::strstr(caller.dli_fname, "libclipsight.so")) ++ours;
    break;
  }
  counting = true;
}

}  // namespace

#ifndef __SANITIZE_ADDRESS__  // which brings its own
extern "C" void* malloc(size_t size) {
  note();
  return __libc_malloc(size);
}

extern "C" void* calloc(size_t count, size_t size) {
  note();
  return __libc_calloc(count, size);
}

extern "C" void* realloc(void* memory, size_t size) {
  note();
  return __libc_realloc(memory, size);
}
#endif

void count_allocations() {
  void* frames[2];
  backtrace(frames, 2);  // loads what it needs
  ours = 0;
  counting = true;
}

int counted_allocations() {
  counting = false;
  return ours;
}
