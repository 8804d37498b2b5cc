// Values side by side in memory that a thread moves in one instruction. The compiler does not merge a struct's members
// by itself, so they go through the vector types of CUDA.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace clipsight {

#if defined(__CUDACC__)
template <int kBytes> struct WordOf;
template <> struct WordOf<1> { using type = unsigned char; };
template <> struct WordOf<2> { using type = unsigned short; };
template <> struct WordOf<4> { using type = unsigned; };
template <> struct WordOf<8> { using type = uint2; };
template <> struct WordOf<16> { using type = uint4; };
template <int kBytes> using Word = typename WordOf<kBytes>::type;

template <class Word> __device__ Word load_word(const void* from) { return __ldg(static_cast<const Word*>(from)); }
/// Written once and not read again by the kernel: it should leave the cache to what is.
template <class Word> __device__ void store_word(void* to, Word word) { __stcs(static_cast<Word*>(to), word); }
#else  // on a host there is nothing to merge
template <int kBytes> struct alignas(kBytes) Word { char bytes[kBytes]; };
template <class Word> Word load_word(const void* from) { return *static_cast<const Word*>(from); }
template <class Word> void store_word(void* to, Word word) { *static_cast<Word*>(to) = word; }
#endif

/// Whether a pack of `bytes` may begin there.
inline bool aligned(const void* pointer, size_t bytes) { return reinterpret_cast<uintptr_t>(pointer) % bytes == 0; }

/// kCount values of T, together 1, 2, 4, 8 or 16 bytes and aligned to that.
template <class T, int kCount>
struct Pack {
  T value[kCount];

  /// From memory that no one writes while the kernel runs.
  __device__ static Pack load(const T* from) {
    const auto word = load_word<Word<sizeof(Pack)>>(from);
    Pack pack;
    memcpy(&pack, &word, sizeof(Pack));
    return pack;
  }
  __device__ void store(T* to) const {
    Word<sizeof(Pack)> word;
    memcpy(&word, this, sizeof(Pack));
    store_word(to, word);
  }
};

}  // namespace clipsight
