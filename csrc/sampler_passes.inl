// The vector loops, included once per instruction set (see sampler_passes.cpp), written with the compiler's vector
// types. `OCTAVO_ISA` names the namespace. No include guard on purpose.
namespace octavo::sampler::OCTAVO_ISA {

OCTAVO_INLINE Floats spread(float value) { return value - Floats{}; }

OCTAVO_INLINE Floats load(const float* from) {
  Floats v;
  std::memcpy(&v, from, sizeof v);
  return v;
}

// 2^x for -126 < x <= 0, one text for vectors and for a float: 2^x = 2^n * 2^f, n = round(x), |f| <= 1/2. The
// polynomial is 1 + f * q(f) with q of degree 4 fitted to the least relative error, 9e-8 before rounding.
template <class V, class I>
OCTAVO_INLINE void exp2_in_place(V& x) {
  V shifted = x + kRound;
  V f = x - (shifted - kRound);
  V p = f * 1.326472689e-3f + 9.671512910e-3f;
  p = p * f + 5.550733747e-2f;
  p = p * f + 2.402224208e-1f;
  p = p * f + 6.931469776e-1f;
  p = p * f + 1.0f;
  I n, bits;
  std::memcpy(&n, &shifted, sizeof n);
  std::memcpy(&bits, &p, sizeof bits);
  bits = bits + (n << 23);  // n into the exponent
  std::memcpy(&x, &bits, sizeof x);
}

inline bool block_maxima(const float* x, int64_t blocks, float* maxima) {
  Ints bad = {};
  for (int64_t b = 0; b < blocks; ++b) {
    Floats best = spread(kMinusInfinity), other = best;  // two chains: one waits for its own last step
    for (int64_t i = 0; i < kBlock; i += 2 * kLanes) {
      Floats v = load(x + b * kBlock + i), w = load(x + b * kBlock + i + kLanes);
      best = v > best ? v : best;
      other = w > other ? w : other;
      bad |= (v != v) | (w != w);
    }
    best = other > best ? other : best;
    std::memcpy(maxima + b * kLanes, &best, sizeof best);
  }
  int32_t any = 0;
  for (int lane = 0; lane < kLanes; ++lane) any |= bad[lane];
  return any != 0;
}

inline double block_exp_sums(const float* x, int64_t blocks, const Weighting& w, double* by_block) {
  const Floats zero = {}, top = spread(w.top), scale = spread(w.scale), floor = spread(w.floor);
  double total = 0;
  for (int64_t b = 0; b < blocks; ++b) {
    Floats sum = {}, other = {};
    for (int64_t i = 0; i < kBlock; i += 2 * kLanes) {
      Floats v = load(x + b * kBlock + i), w = load(x + b * kBlock + i + kLanes);
      Floats weight = (v - top) * scale, second = (w - top) * scale;
      exp2_in_place<Floats, Bits>(weight);  // below the floor: any bits
      exp2_in_place<Floats, Bits>(second);
      sum += v >= floor ? weight : zero;
      other += w >= floor ? second : zero;
    }
    sum += other;
    double block = 0;
    for (int lane = 0; lane < kLanes; ++lane) block += static_cast<double>(sum[lane]);
    by_block[b] = block;
    total += block;
  }
  return total;
}

inline int64_t count_over(const float* x, int64_t count, float value, bool equal_too) {
  const Floats pivot = spread(value);
  Ints found = {};  // minus the count: true is -1
  if (equal_too) {
    for (int64_t i = 0; i + kLanes <= count; i += kLanes) found += load(x + i) >= pivot;
  } else {
    for (int64_t i = 0; i + kLanes <= count; i += kLanes) found += load(x + i) > pivot;
  }
  int64_t total = 0;
  for (int lane = 0; lane < kLanes; ++lane) total -= found[lane];
  for (int64_t i = count - count % kLanes; i < count; ++i) total += equal_too ? x[i] >= value : x[i] > value;
  return total;
}

}  // namespace octavo::sampler::OCTAVO_ISA
