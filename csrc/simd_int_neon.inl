// The vocabulary of simd_int.h as four NEON registers: part of simd_int.h.

struct Bytes {
  uint8x16_t v[4];
};
struct Ints {
  int32x4_t v[4];
};
// f(i) for each quarter.
template <class F>
inline Bytes byte_quarters(F f) {
  return {{f(0), f(1), f(2), f(3)}};
}
template <class F>
inline Ints int_quarters(F f) {
  return {{f(0), f(1), f(2), f(3)}};
}
inline Bytes load_bytes(const uint8_t* p) {
  return byte_quarters([=](int i) { return vld1q_u8(p + 16 * i); });
}
inline void store_bytes(uint8_t* p, const Bytes& x) {
  for (int i = 0; i < 4; ++i) vst1q_u8(p + 16 * i, x.v[i]);
}
inline Bytes repeat16(const uint8_t* p) {
  return byte_quarters([=](int) { return vld1q_u8(p); });
}
inline Bytes low_nibbles(const Bytes& x) {
  return byte_quarters([&](int i) { return vandq_u8(x.v[i], vdupq_n_u8(15)); });
}
inline Bytes high_nibbles(const Bytes& x) {
  return byte_quarters([&](int i) { return vshrq_n_u8(x.v[i], 4); });
}
inline Bytes lookup(const Bytes& table, const Bytes& index) {
  return byte_quarters([&](int i) { return vqtbl1q_u8(table.v[0], index.v[i]); });
}
inline Ints ints(int32_t x) {
  return int_quarters([=](int) { return vdupq_n_s32(x); });
}
inline Vec to_float(const Ints& x) {
  return quarters([&](int i) { return vcvtq_f32_s32(x.v[i]); });
}
inline Ints to_ints(const Vec& x) {
  return int_quarters([&](int i) { return vcvtnq_s32_f32(x.v[i]); });
}
inline Ints column(const Bytes& x, int j) {
  const int32x4_t down = vdupq_n_s32(-8 * j);
  return int_quarters([&](int i) {
    const uint32x4_t moved = vshlq_u32(vreinterpretq_u32_u8(x.v[i]), down);
    return vreinterpretq_s32_u32(vandq_u32(moved, vdupq_n_u32(255)));
  });
}
// The sixteen floats are 64 bytes: entry n is bytes 4n .. 4n + 3 of them.
inline Vec lookup(const float* table, const Ints& index) {
  uint8x16x4_t bytes;
  for (int i = 0; i < 4; ++i) bytes.val[i] = vreinterpretq_u8_f32(vld1q_f32(table + 4 * i));
  return quarters([&](int i) {
    const uint32x4_t n = vreinterpretq_u32_s32(index.v[i]);
    const uint32x4_t at = vmlaq_u32(vdupq_n_u32(0x03020100u), n, vdupq_n_u32(0x04040404u));
    return vreinterpretq_f32_u8(vqtbl4q_u8(bytes, vreinterpretq_u8_u32(at)));
  });
}
inline Bytes join(const Vec& a, const Vec& b, const Vec& c, const Vec& d) {
  const Ints w = to_ints(a), x = to_ints(b), y = to_ints(c), z = to_ints(d);
  return byte_quarters([&](int i) {
    const int32x4_t low = vsliq_n_s32(w.v[i], x.v[i], 8), high = vsliq_n_s32(y.v[i], z.v[i], 8);
    return vreinterpretq_u8_s32(vsliq_n_s32(low, high, 16));
  });
}
inline void store_int8(int8_t* p, const Vec& x) {
  const Ints n = to_ints(x);
  const int16x8_t low = vcombine_s16(vqmovn_s32(n.v[0]), vqmovn_s32(n.v[1]));
  const int16x8_t high = vcombine_s16(vqmovn_s32(n.v[2]), vqmovn_s32(n.v[3]));
  vst1q_s8(p, vcombine_s8(vqmovn_s16(low), vqmovn_s16(high)));
}
inline Vec choose(const Vec& x, const Vec& y, const Vec& a, const Vec& b) {
  return quarters([&](int i) { return vbslq_f32(vcgtq_f32(x.v[i], y.v[i]), a.v[i], b.v[i]); });
}

inline int8x16_t repeat4(const int8_t* a) { return vreinterpretq_s8_s32(vdupq_n_s32(four(a))); }
#if defined(__ARM_FEATURE_MATMUL_INT8)
inline Ints dot4(const Ints& s, const Bytes& w, const int8_t* a) {
  const int8x16_t x = repeat4(a);
  return int_quarters([&](int i) { return vusdotq_s32(s.v[i], w.v[i], x); });
}
inline Ints dot8(const Ints& s, const Bytes& w, const int8_t* a) { return dot4(s, w, a); }
#else
#if defined(__ARM_FEATURE_DOTPROD)
inline int32x4_t dot_quarter(int32x4_t s, int8x16_t w, int8x16_t a) { return vdotq_s32(s, w, a); }
#else
// Two products of 128 * 127 still are a number of 16 bits.
inline int32x4_t dot_quarter(int32x4_t s, int8x16_t w, int8x16_t a) {
  const int16x8_t low = vmull_s8(vget_low_s8(w), vget_low_s8(a)), high = vmull_high_s8(w, a);
  return vpadalq_s16(s, vpaddq_s16(low, high));
}
#endif
inline Ints dot4(const Ints& s, const Bytes& w, const int8_t* a) {
  const int8x16_t x = repeat4(a);
  return int_quarters([&](int i) { return dot_quarter(s.v[i], vreinterpretq_s8_u8(w.v[i]), x); });
}
inline Ints dot8(const Ints& s, const Bytes& w, const int8_t* a) {
  const int8x16_t x = repeat4(a);
  return int_quarters(
      [&](int i) { return dot_quarter(s.v[i], vreinterpretq_s8_u8(veorq_u8(w.v[i], vdupq_n_u8(0x80))), x); });
}
#endif
