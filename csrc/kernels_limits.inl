// What the machine can do, for the benchmark: part of kernels.inl.

float read(const float* p, int64_t n) {
  Vec s[8];
  for (Vec& v : s) v = zero();
  for (int64_t i = 0; i < n; i += 128)
    for (int j = 0; j < 8; ++j) {
      __builtin_prefetch(reinterpret_cast<const char*>(p + i + 16 * j) + 4096);
      s[j] = s[j] + load(p + i + 16 * j);
    }
  return sum(((s[0] + s[1]) + (s[2] + s[3])) + ((s[4] + s[5]) + (s[6] + s[7])));
}

// `rounds` rounds of independent multiply-adds in registers; the operations (a product and a sum are two) of all.
int64_t peak(Multiply kind, int64_t rounds, float* sink) {
  constexpr int chains = 12;
  if (kind == Multiply::int8) {
    const uint8_t ones[64] = {1};
    const Bytes w = load_bytes(ones);
    int8_t fours[64];  // changing inputs, lest a compiler takes the product out of the loop
    for (int i = 0; i < 64; ++i) fours[i] = static_cast<int8_t>(i);
    // By name: GCC 12 keeps an array of these in memory.
    Ints a = ints(0), b = a, c = a, d = a, e = a, f = a, g = a, h = a;
    for (int64_t i = 0; i < rounds; ++i) {
      const int8_t* x = fours + 4 * (i & 7);
      a = dot4(a, w, x);
      b = dot4(b, w, x + 4);
      c = dot4(c, w, x + 8);
      d = dot4(d, w, x + 12);
      e = dot4(e, w, x + 16);
      f = dot4(f, w, x + 20);
      g = dot4(g, w, x + 24);
      h = dot4(h, w, x + 28);
    }
    *sink = sum(to_float(a) + to_float(b) + to_float(c) + to_float(d) + to_float(e) + to_float(f) + to_float(g) +
                to_float(h));
    return rounds * 8 * kTile * 8;
  }
  Vec s[chains];
  for (Vec& v : s) v = zero();
#if OCTAVO_BF16_DOT
  if (kind == Multiply::bf16) {
    const auto w = reinterpret_cast<__m512bh>(_mm512_set1_epi32(0x3c003c00));
    for (int64_t i = 0; i < rounds; ++i) {
      const auto x = reinterpret_cast<__m512bh>(_mm512_set1_epi32(static_cast<int>(i)));
      for (Vec& v : s) v.v = _mm512_dpbf16_ps(v.v, w, x);
    }
  } else
#endif
  {
    const Vec w = set1(1.0f / 128);
    for (int64_t i = 0; i < rounds; ++i) {
      const Vec x = set1(static_cast<float>(i));
      for (Vec& v : s) v = fma(w, x, v);
    }
  }
  Vec total = zero();
  for (const Vec& v : s) total = total + v;
  *sink = sum(total);
  const bool dot = OCTAVO_BF16_DOT != 0 && kind == Multiply::bf16;
  return rounds * chains * kTile * (dot ? 4 : 2);
}
