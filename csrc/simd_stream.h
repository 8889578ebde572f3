// Writes that leave the caches alone. After the last one of a thread: end_stream(), or others may not see them.
#pragma once

#include "simd.h"

namespace octavo::OCTAVO_ISA {

#if defined(__AVX512F__)
inline void stream(float* p, Vec x) { _mm512_stream_ps(p, x.v); }
inline void end_stream() { _mm_sfence(); }
#elif defined(__AVX2__)
inline void stream(float* p, Vec x) {
  _mm256_stream_ps(p, x.a);
  _mm256_stream_ps(p + 8, x.b);
}
inline void end_stream() { _mm_sfence(); }
#else
inline void stream(float* p, const Vec& x) { store(p, x); }
inline void end_stream() {}
#endif

}  // namespace octavo::OCTAVO_ISA
