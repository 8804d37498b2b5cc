// Scratch memory of the CPU kernels. Each thread keeps what its last call used, so that from the second call of a shape
// on nothing is allocated: the allocator would hand large blocks back to the system and fault them in again each time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <new>
#include <type_traits>

namespace clipsight {

/// A stack frame on the thread's scratch memory: what it hands out lives until it is destroyed, on the same thread.
class Workspace {
 public:
  Workspace();
  ~Workspace();
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;

  /// `count` uninitialised values that start at a cache line, so that no vector register is loaded from two.
  template <class T>
  T* array(int64_t count) {
    static_assert(std::is_trivially_destructible_v<T>, "nobody destroys what lies here");
    return static_cast<T*>(take(static_cast<std::size_t>(count) * sizeof(T)));
  }
  template <class T>
  T* array(int64_t count, const T& value) {
    T* values = array<T>(count);
    for (int64_t i = 0; i < count; ++i) new (values + i) T(value);
    return values;
  }

 private:
  static void* take(std::size_t bytes);

  std::size_t block_, used_;  // where the frame began
};

}  // namespace clipsight
