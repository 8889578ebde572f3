// The vocabulary of simd.h as four NEON registers: part of simd.h.

struct Vec {
  float32x4_t v[4];
};

// f(i) for each quarter.
template <class F>
inline Vec quarters(F f) {
  return {{f(0), f(1), f(2), f(3)}};
}
inline Vec set1(float x) {
  return quarters([=](int) { return vdupq_n_f32(x); });
}
inline Vec zero() { return set1(0.0f); }
inline Vec load(const float* p) {
  return quarters([=](int i) { return vld1q_f32(p + 4 * i); });
}
inline void store(float* p, const Vec& x) {
  for (int i = 0; i < 4; ++i) vst1q_f32(p + 4 * i, x.v[i]);
}
// The sixteen floats in memory, for what is done one by one.
struct Lanes {
  float v[16];
};
inline Lanes lanes(const Vec& x) {
  Lanes r;
  store(r.v, x);
  return r;
}
template <class F>
inline Vec each(F f) {
  Lanes r;
  for (int i = 0; i < 16; ++i) r.v[i] = f(i);
  return load(r.v);
}
inline Vec load(const float* p, int n) {
  return n >= 16 ? load(p) : each([=](int i) { return i < n ? p[i] : 0.0f; });
}
inline void store(float* p, const Vec& x, int n) {
  if (n >= 16) return store(p, x);
  std::memcpy(p, lanes(x).v, sizeof(float) * static_cast<size_t>(n));
}
inline Vec operator+(const Vec& x, const Vec& y) {
  return quarters([&](int i) { return vaddq_f32(x.v[i], y.v[i]); });
}
inline Vec operator-(const Vec& x, const Vec& y) {
  return quarters([&](int i) { return vsubq_f32(x.v[i], y.v[i]); });
}
inline Vec operator*(const Vec& x, const Vec& y) {
  return quarters([&](int i) { return vmulq_f32(x.v[i], y.v[i]); });
}
inline Vec operator/(const Vec& x, const Vec& y) {
  return quarters([&](int i) { return vdivq_f32(x.v[i], y.v[i]); });
}
inline Vec fma(const Vec& x, const Vec& y, const Vec& z) {
  return quarters([&](int i) { return vfmaq_f32(z.v[i], x.v[i], y.v[i]); });
}
inline Vec max(const Vec& x, const Vec& y) {
  return quarters([&](int i) { return vmaxq_f32(x.v[i], y.v[i]); });
}
inline Vec min(const Vec& x, const Vec& y) {
  return quarters([&](int i) { return vminq_f32(x.v[i], y.v[i]); });
}
inline Vec round(const Vec& x) {
  return quarters([&](int i) { return vrndnq_f32(x.v[i]); });
}
inline Vec scale2(const Vec& x, const Vec& n) {
  return quarters([&](int i) {
    const int32x4_t e = vshlq_n_s32(vaddq_s32(vcvtq_s32_f32(n.v[i]), vdupq_n_s32(127)), 23);
    return vmulq_f32(x.v[i], vreinterpretq_f32_s32(e));
  });
}
inline float sum(const Vec& x) { return vaddvq_f32(vaddq_f32(vaddq_f32(x.v[0], x.v[1]), vaddq_f32(x.v[2], x.v[3]))); }
inline float largest(const Vec& x) {
  return vmaxvq_f32(vmaxq_f32(vmaxq_f32(x.v[0], x.v[1]), vmaxq_f32(x.v[2], x.v[3])));
}
inline Vec between(const Vec& x, const Vec& y, int from, int to) {
  float a[16], b[16];
  store(a, x);
  store(b, y);
  for (int i = 0; i < 16; ++i) b[i] = i >= from && i < to ? a[i] : b[i];
  return load(b);
}
inline Vec load_bf16(const uint16_t* p) {
  return quarters([=](int i) { return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p + 4 * i), 16)); });
}
inline Vec load_f16(const uint16_t* p) {
  return quarters([=](int i) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p + 4 * i))); });
}
inline void store_f16(uint16_t* p, const Vec& x) {
  for (int i = 0; i < 4; ++i) vst1_u16(p + 4 * i, vreinterpret_u16_f16(vcvt_f16_f32(x.v[i])));
}
inline void store_bf16(uint16_t* p, const Vec& x) {
  for (int i = 0; i < 4; ++i) {
    const uint32x4_t bits = vreinterpretq_u32_f32(x.v[i]);
    const uint32x4_t odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
    const uint32x4_t up = vaddq_u32(bits, vaddq_u32(odd, vdupq_n_u32(0x7fff)));
    const uint32x4_t same = vceqq_f32(x.v[i], x.v[i]);
    vst1_u16(p + 4 * i, vmovn_u32(vbslq_u32(same, vshrq_n_u32(up, 16), vdupq_n_u32(0x7fc0))));
  }
}
inline bool above(const Vec& x, float y) { return largest(x) > y; }
struct Pairs {
  uint32x4_t v[4];
};
inline Pairs load_pairs(const uint32_t* p) {
  return {{vld1q_u32(p), vld1q_u32(p + 4), vld1q_u32(p + 8), vld1q_u32(p + 12)}};
}
inline Pairs operator&(Pairs x, uint32_t mask) {
  for (uint32x4_t& v : x.v) v = vandq_u32(v, vdupq_n_u32(mask));
  return x;
}
inline Vec even(const Pairs& x) {
  return quarters([&](int i) { return vreinterpretq_f32_u32(vshlq_n_u32(x.v[i], 16)); });
}
inline Vec odd(const Pairs& x) {
  return quarters([&](int i) { return vreinterpretq_f32_u32(vandq_u32(x.v[i], vdupq_n_u32(0xffff0000u))); });
}
