// float16 to float32 and back, for one SIMD level (included by ops/levels/kernels_body.h).

template <class From, class To>
static inline void convert(const typename From::type* from, int64_t count, typename To::type* to) {
  int64_t i = 0;
  for (; i + kWidth <= count; i += kWidth) {
    store_as(to + i, To::pack(From::unpack(load_as<typename From::Packed>(from + i))));
  }
  if (i < count) {
    store_first(to + i, To::pack(From::unpack(load_first<typename From::Packed>(from + i, count - i))), count - i);
  }
}

static void to_float32(const uint16_t* half, int64_t count, float* single) {
  convert<Float16, Float32>(half, count, single);
}
static void to_float16(const float* single, int64_t count, uint16_t* half) {
  convert<Float32, Float16>(single, count, half);
}
