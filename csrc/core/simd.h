// The few vector operations that the kernel bodies need, on the compiler's vector extensions.
//
// Included once per level, by ops/levels/kernels_body.h, inside the level's namespace: CLIPSIGHT_WIDTH floats a vector.
// Everything here is `static inline` or intrinsic, and no std header's function is used: an inline function of the
// standard library compiled here with AVX-512 could be the copy that the linker keeps for the whole program, which would
// then stop with an illegal instruction on an older processor.

constexpr int kWidth = CLIPSIGHT_WIDTH;

typedef float Vec __attribute__((vector_size(CLIPSIGHT_WIDTH * 4)));
typedef int32_t IVec __attribute__((vector_size(CLIPSIGHT_WIDTH * 4)));
typedef uint32_t UVec __attribute__((vector_size(CLIPSIGHT_WIDTH * 4)));
typedef uint16_t HVec __attribute__((vector_size(CLIPSIGHT_WIDTH * 2)));
typedef double DVec __attribute__((vector_size(CLIPSIGHT_WIDTH * 4)));  // half as many
typedef float HalfVec __attribute__((vector_size(CLIPSIGHT_WIDTH * 2)));
typedef uint8_t BVec __attribute__((vector_size(CLIPSIGHT_WIDTH)));

template <class V, class T>
static inline V load_as(const T* p) {
  V v;
  __builtin_memcpy(&v, p, sizeof(V));
  return v;
}
template <class V, class T>
static inline void store_as(T* p, V v) {
  __builtin_memcpy(p, &v, sizeof(V));
}
static inline Vec splat(float x) { return x - Vec{}; }  // also right for x = -0 and NaN

/// The first `count` lanes; the others are zero, and nothing behind them is touched.
template <class V, class T>
static inline V load_first(const T* p, int64_t count) {
  V v{};
  __builtin_memcpy(&v, p, static_cast<size_t>(count) * sizeof(T));
  return v;
}
template <class V, class T>
static inline void store_first(T* p, V v, int64_t count) {
  __builtin_memcpy(p, &v, static_cast<size_t>(count) * sizeof(T));
}

static inline Vec abs(Vec v) { return (Vec)((IVec)v & 0x7fffffff); }

// ---- What the vector extensions cannot say well, per instruction set ----
#if CLIPSIGHT_WIDTH == 16
static inline Vec fma(Vec a, Vec b, Vec c) { return (Vec)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c); }
static inline Vec min(Vec a, Vec b) { return (Vec)_mm512_min_ps((__m512)a, (__m512)b); }
static inline Vec max(Vec a, Vec b) { return (Vec)_mm512_max_ps((__m512)a, (__m512)b); }
static inline bool any(IVec mask) { return _mm512_movepi32_mask((__m512i)mask) != 0; }
static inline Vec from_half(HVec h) { return (Vec)_mm512_cvtph_ps((__m256i)h); }
static inline HVec to_half(Vec v) { return (HVec)_mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT); }
static inline BVec to_bytes(IVec v) { return (BVec)_mm512_cvtepi32_epi8((__m512i)v); }
static inline void add_lanes(double* sums, Vec v) {
  const __m512d low = _mm512_cvtps_pd(_mm512_castps512_ps256((__m512)v));
  const __m512d high = _mm512_cvtps_pd(_mm512_extractf32x8_ps((__m512)v, 1));
  _mm512_storeu_pd(sums, _mm512_add_pd(_mm512_loadu_pd(sums), low));
  _mm512_storeu_pd(sums + 8, _mm512_add_pd(_mm512_loadu_pd(sums + 8), high));
}
#elif CLIPSIGHT_WIDTH == 8
static inline Vec fma(Vec a, Vec b, Vec c) { return (Vec)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c); }
static inline Vec min(Vec a, Vec b) { return (Vec)_mm256_min_ps((__m256)a, (__m256)b); }
static inline Vec max(Vec a, Vec b) { return (Vec)_mm256_max_ps((__m256)a, (__m256)b); }
static inline bool any(IVec mask) { return _mm256_movemask_ps((__m256)mask) != 0; }
static inline Vec from_half(HVec h) { return (Vec)_mm256_cvtph_ps((__m128i)h); }
static inline HVec to_half(Vec v) { return (HVec)_mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT); }
static inline BVec to_bytes(IVec v) { return __builtin_convertvector(v, BVec); }
static inline void add_lanes(double* sums, Vec v) {
  const __m256d low = _mm256_cvtps_pd(_mm256_castps256_ps128((__m256)v));
  const __m256d high = _mm256_cvtps_pd(_mm256_extractf128_ps((__m256)v, 1));
  _mm256_storeu_pd(sums, _mm256_add_pd(_mm256_loadu_pd(sums), low));
  _mm256_storeu_pd(sums + 4, _mm256_add_pd(_mm256_loadu_pd(sums + 4), high));
}
#else  // any processor
static inline Vec fma(Vec a, Vec b, Vec c) { return a * b + c; }
static inline Vec min(Vec a, Vec b) { return a < b ? a : b; }
static inline Vec max(Vec a, Vec b) { return a > b ? a : b; }
static inline bool any(IVec mask) {
  int32_t bits = 0;
  for (int i = 0; i < kWidth; ++i) bits |= mask[i];
  return bits != 0;
}
static inline Vec from_half(HVec h) {
  const UVec bits = __builtin_convertvector(h, UVec), sign = (bits & 0x8000u) << 16, magnitude = bits & 0x7fffu;
  // Read as float32, the shifted bits are the value times 2^-112 (subnormals included); the product is exact.
  const Vec scaled = (Vec)(magnitude << 13) * 0x1p112f;
  const UVec special = (magnitude << 13) | 0x7f800000u;  // Inf and NaN
  return (Vec)((magnitude >= 0x7c00u ? special : (UVec)scaled) | sign);
}
static inline HVec to_half(Vec v) {
  const UVec bits = (UVec)v, sign = (bits >> 16) & 0x8000u, magnitude = bits & 0x7fffffffu;
  // Normal results: rebias and round half to even. Subnormal ones: let a float32 addition do the rounding.
  const UVec normal = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  const UVec subnormal = (UVec)((Vec)magnitude + 0.5f) - 0x3f000000u;
  UVec half = magnitude < 0x38800000u ? subnormal : normal;
  half = magnitude >= 0x47800000u ? UVec{} + 0x7c00u : half;
  half = magnitude > 0x7f800000u ? UVec{} + 0x7e00u : half;
  return __builtin_convertvector(half | sign, HVec);
}
static inline BVec to_bytes(IVec v) { return __builtin_convertvector(v, BVec); }
static inline void add_lanes(double* sums, Vec v) {
  for (int i = 0; i < kWidth; ++i) sums[i] += static_cast<double>(v[i]);
}
#endif

static inline Vec from_bfloat16(HVec h) { return (Vec)(__builtin_convertvector(h, UVec) << 16); }

/// Adding 1.5 x 2^23 leaves the integer, rounded half to even, in the low bits.
static inline BVec quantise(Vec normalised) { return to_bytes((IVec)(fma(normalised, splat(255.0f), Vec{}) + 12582912.0f) & 255); }

// ---- Element types of the inputs and outputs ----
struct Float32 {
  using type = float;
  using Packed = Vec;
  static inline Vec unpack(Packed v) { return v; }
  static inline Packed pack(Vec v) { return v; }
};
struct Float16 {
  using type = uint16_t;
  using Packed = HVec;
  static inline Vec unpack(Packed v) { return from_half(v); }
  static inline Packed pack(Vec v) { return to_half(v); }
};
struct BFloat16 {
  using type = uint16_t;
  using Packed = HVec;
  static inline Vec unpack(Packed v) { return from_bfloat16(v); }
};
struct UInt8 {
  using type = uint8_t;
  using Packed = BVec;
  static inline Packed pack(Vec v) { return quantise(v); }
};
