// The integer part of the vector vocabulary: products of small whole numbers, for quantized weights.
//
// Weights come sixteen output rows side by side: a lane of 32 bits is one row, its four bytes four neighbouring
// columns. Four activations (int8) meet all lanes at once. dot4 takes bytes 0 .. 15, dot8 bytes that hold a
// number plus 128; both give exact sums in 32 bits.
#pragma once

#include "simd.h"

namespace octavo::OCTAVO_ISA {

#if (defined(__AVX512VNNI__) && defined(__AVX512F__)) || defined(__AVXVNNI__) || \
    (defined(OCTAVO_NEON) && defined(__ARM_FEATURE_MATMUL_INT8))
// dot8 multiplies the bytes as they are, so that 128 times the sum of the activations is to be taken off.
constexpr int kBias8 = 128;
#else
constexpr int kBias8 = 0;
#endif

inline int32_t four(const int8_t* a) {
  int32_t bits;
  std::memcpy(&bits, a, 4);
  return bits;
}

#if defined(__AVX512F__) && defined(__AVX512BW__)

struct Bytes {
  __m512i v;
};
struct Ints {
  __m512i v;
};
inline Bytes load_bytes(const uint8_t* p) { return {_mm512_loadu_si512(p)}; }
inline void store_bytes(uint8_t* p, Bytes x) { _mm512_storeu_si512(p, x.v); }
inline Bytes repeat16(const uint8_t* p) {
  return {_mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
}
inline Bytes low_nibbles(Bytes x) { return {_mm512_and_si512(x.v, _mm512_set1_epi8(15))}; }
inline Bytes high_nibbles(Bytes x) { return {_mm512_and_si512(_mm512_srli_epi16(x.v, 4), _mm512_set1_epi8(15))}; }
inline Bytes lookup(Bytes table, Bytes index) { return {_mm512_shuffle_epi8(table.v, index.v)}; }
inline Ints ints(int32_t x) { return {_mm512_set1_epi32(x)}; }
inline Vec to_float(Ints x) { return {_mm512_cvtepi32_ps(x.v)}; }
inline Ints to_ints(Vec x) { return {_mm512_cvtps_epi32(x.v)}; }
inline Ints column(Bytes x, int i) {
  return {_mm512_and_si512(_mm512_srli_epi32(x.v, static_cast<unsigned>(8 * i)), _mm512_set1_epi32(255))};
}
inline Vec lookup(const float* table, Ints index) { return {_mm512_permutexvar_ps(index.v, _mm512_loadu_ps(table))}; }
inline Bytes join(Vec a, Vec b, Vec c, Vec d) {
  const __m512i ab = _mm512_or_si512(to_ints(a).v, _mm512_slli_epi32(to_ints(b).v, 8));
  const __m512i cd = _mm512_or_si512(_mm512_slli_epi32(to_ints(c).v, 16), _mm512_slli_epi32(to_ints(d).v, 24));
  return {_mm512_or_si512(ab, cd)};
}
inline void store_int8(int8_t* p, Vec x) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtsepi32_epi8(to_ints(x).v));
}
// where x > y: a, else b
inline Vec choose(Vec x, Vec y, Vec a, Vec b) {
  return {_mm512_mask_mov_ps(b.v, _mm512_cmp_ps_mask(x.v, y.v, _CMP_GT_OQ), a.v)};
}
#if defined(__AVX512VNNI__)
// By hand, since GCC 12 loads the four bytes apart and copies the sums to and fro: a third of the speed.
inline Ints dot4(Ints s, Bytes w, const int8_t* a) {
  const auto& four_bytes = *reinterpret_cast<const int8_t (*)[4]>(a);
  asm("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(s.v) : "v"(w.v), "m"(four_bytes));
  return s;
}
inline Ints dot8(Ints s, Bytes w, const int8_t* a) { return dot4(s, w, a); }
#else
inline Ints dot4(Ints s, Bytes w, const int8_t* a) {
  const __m512i pairs = _mm512_maddubs_epi16(w.v, _mm512_set1_epi32(four(a)));
  return {_mm512_add_epi32(s.v, _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)))};
}
// |w| * (sign of w) a: at most 2 * 128 * 127 in 16 bits. The sign comes in where w is negative, by 0 - a.
inline Ints dot8(Ints s, Bytes w, const int8_t* a) {
  const __m512i signed_w = _mm512_xor_si512(w.v, _mm512_set1_epi8(static_cast<char>(0x80)));
  const __m512i x = _mm512_set1_epi32(four(a));
  const __m512i y = _mm512_mask_sub_epi8(x, _mm512_movepi8_mask(signed_w), _mm512_setzero_si512(), x);
  const __m512i pairs = _mm512_maddubs_epi16(_mm512_abs_epi8(signed_w), y);
  return {_mm512_add_epi32(s.v, _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)))};
}
#endif

#elif defined(__AVX2__)

struct Bytes {
  __m256i a, b;
};
struct Ints {
  __m256i a, b;
};
inline Bytes load_bytes(const uint8_t* p) {
  return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)),
          _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + 32))};
}
inline void store_bytes(uint8_t* p, Bytes x) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), x.a);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p + 32), x.b);
}
inline Bytes repeat16(const uint8_t* p) {
  const __m256i t = _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  return {t, t};
}
inline Bytes low_nibbles(Bytes x) {
  const __m256i mask = _mm256_set1_epi8(15);
  return {_mm256_and_si256(x.a, mask), _mm256_and_si256(x.b, mask)};
}
inline Bytes high_nibbles(Bytes x) { return low_nibbles({_mm256_srli_epi16(x.a, 4), _mm256_srli_epi16(x.b, 4)}); }
inline Bytes lookup(Bytes table, Bytes index) {
  return {_mm256_shuffle_epi8(table.a, index.a), _mm256_shuffle_epi8(table.a, index.b)};
}
inline Ints ints(int32_t x) { return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
inline Vec to_float(Ints x) { return {_mm256_cvtepi32_ps(x.a), _mm256_cvtepi32_ps(x.b)}; }
inline Ints to_ints(Vec x) { return {_mm256_cvtps_epi32(x.a), _mm256_cvtps_epi32(x.b)}; }
inline Ints column(Bytes x, int i) {
  const __m256i mask = _mm256_set1_epi32(255);
  return {_mm256_and_si256(_mm256_srli_epi32(x.a, 8 * i), mask), _mm256_and_si256(_mm256_srli_epi32(x.b, 8 * i), mask)};
}
inline __m256 lookup_half(const float* table, __m256i index) {
  const __m256 low = _mm256_permutevar8x32_ps(_mm256_loadu_ps(table), index);
  const __m256 high = _mm256_permutevar8x32_ps(_mm256_loadu_ps(table + 8), index);
  return _mm256_blendv_ps(low, high, _mm256_castsi256_ps(_mm256_slli_epi32(index, 28)));
}
inline Vec lookup(const float* table, Ints index) { return {lookup_half(table, index.a), lookup_half(table, index.b)}; }
inline __m256i join_half(__m256 a, __m256 b, __m256 c, __m256 d) {
  const __m256i ab = _mm256_or_si256(_mm256_cvtps_epi32(a), _mm256_slli_epi32(_mm256_cvtps_epi32(b), 8));
  const __m256i cd =
      _mm256_or_si256(_mm256_slli_epi32(_mm256_cvtps_epi32(c), 16), _mm256_slli_epi32(_mm256_cvtps_epi32(d), 24));
  return _mm256_or_si256(ab, cd);
}
inline Bytes join(Vec a, Vec b, Vec c, Vec d) { return {join_half(a.a, b.a, c.a, d.a), join_half(a.b, b.b, c.b, d.b)}; }
inline void store_int8(int8_t* p, Vec x) {
  const Ints n = to_ints(x);
  const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(n.a, n.b), 0xd8);
  const __m128i bytes = _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), bytes);
}
inline Vec choose(Vec x, Vec y, Vec a, Vec b) {
  return {_mm256_blendv_ps(b.a, a.a, _mm256_cmp_ps(x.a, y.a, _CMP_GT_OQ)),
          _mm256_blendv_ps(b.b, a.b, _mm256_cmp_ps(x.b, y.b, _CMP_GT_OQ))};
}
#if defined(__AVXVNNI__)
inline Ints dot4(Ints s, Bytes w, const int8_t* a) {
  const __m256i x = _mm256_set1_epi32(four(a));
  return {_mm256_dpbusd_avx_epi32(s.a, w.a, x), _mm256_dpbusd_avx_epi32(s.b, w.b, x)};
}
inline Ints dot8(Ints s, Bytes w, const int8_t* a) { return dot4(s, w, a); }
#else
inline __m256i dot_half(__m256i s, __m256i w, __m256i a) {
  return _mm256_add_epi32(s, _mm256_madd_epi16(_mm256_maddubs_epi16(w, a), _mm256_set1_epi16(1)));
}
inline Ints dot4(Ints s, Bytes w, const int8_t* a) {
  const __m256i x = _mm256_set1_epi32(four(a));
  return {dot_half(s.a, w.a, x), dot_half(s.b, w.b, x)};
}
// |w| * (sign of w) a: at most 2 * 128 * 127 in 16 bits.
inline Ints dot8(Ints s, Bytes w, const int8_t* a) {
  const __m256i x = _mm256_set1_epi32(four(a)), top = _mm256_set1_epi8(static_cast<char>(0x80));
  const __m256i first = _mm256_xor_si256(w.a, top), second = _mm256_xor_si256(w.b, top);
  return {dot_half(s.a, _mm256_abs_epi8(first), _mm256_sign_epi8(x, first)),
          dot_half(s.b, _mm256_abs_epi8(second), _mm256_sign_epi8(x, second))};
}
#endif

#elif defined(OCTAVO_NEON)
#include "simd_int_neon.inl"

#else  // scalar

struct Bytes {
  uint8_t v[64];
};
struct Ints {
  int32_t v[16];
};
template <class F>
inline Bytes each_byte(F f) {
  Bytes r;
  for (int i = 0; i < 64; ++i) r.v[i] = static_cast<uint8_t>(f(i));
  return r;
}
template <class F>
inline Ints each_int(F f) {
  Ints r;
  for (int i = 0; i < 16; ++i) r.v[i] = f(i);
  return r;
}
inline Bytes load_bytes(const uint8_t* p) {
  Bytes r;
  std::memcpy(r.v, p, 64);
  return r;
}
inline void store_bytes(uint8_t* p, const Bytes& x) { std::memcpy(p, x.v, 64); }
inline Bytes repeat16(const uint8_t* p) {
  return each_byte([=](int i) { return p[i % 16]; });
}
inline Bytes low_nibbles(const Bytes& x) {
  return each_byte([&](int i) { return x.v[i] & 15; });
}
inline Bytes high_nibbles(const Bytes& x) {
  return each_byte([&](int i) { return x.v[i] >> 4; });
}
inline Bytes lookup(const Bytes& table, const Bytes& index) {
  return each_byte([&](int i) { return table.v[index.v[i]]; });
}
inline Ints ints(int32_t x) {
  return each_int([=](int) { return x; });
}
inline Vec to_float(const Ints& x) {
  return each([&](int i) { return static_cast<float>(x.v[i]); });
}
inline Ints column(const Bytes& x, int j) {
  return each_int([&](int i) { return static_cast<int32_t>(x.v[4 * i + j]); });
}
inline Vec lookup(const float* table, const Ints& index) {
  return each([&](int i) { return table[index.v[i]]; });
}
inline Bytes join(const Vec& a, const Vec& b, const Vec& c, const Vec& d) {
  const Lanes columns[4] = {lanes(a), lanes(b), lanes(c), lanes(d)};
  return each_byte([&](int i) { return static_cast<int>(columns[i % 4].v[i / 4]); });
}
// Numbers beyond [-127, 127] (not-a-numbers among them) become something, never undefined.
inline void store_int8(int8_t* p, const Vec& numbers) {
  const Lanes x = lanes(numbers);
  for (int i = 0; i < 16; ++i)
    p[i] = static_cast<int8_t>(x.v[i] >= -127.0f && x.v[i] <= 127.0f ? static_cast<int>(x.v[i]) : -128);
}
inline Vec choose(const Vec& x, const Vec& y, const Vec& a, const Vec& b) {
  const Lanes left = lanes(x), right = lanes(y), yes = lanes(a), no = lanes(b);
  return each([&](int i) { return left.v[i] > right.v[i] ? yes.v[i] : no.v[i]; });
}
inline Ints dot4(const Ints& s, const Bytes& w, const int8_t* a) {
  return each_int([&](int i) {
    const uint8_t* row = w.v + 4 * i;
    return s.v[i] + row[0] * a[0] + row[1] * a[1] + row[2] * a[2] + row[3] * a[3];
  });
}
inline Ints dot8(const Ints& s, const Bytes& w, const int8_t* a) {
  return each_int([&](int i) {
    const uint8_t* row = w.v + 4 * i;
    return s.v[i] + (row[0] - 128) * a[0] + (row[1] - 128) * a[1] + (row[2] - 128) * a[2] + (row[3] - 128) * a[3];
  });
}

#endif

}  // namespace octavo::OCTAVO_ISA
