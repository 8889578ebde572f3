// Attention over the paged cache: part of kernels.inl.

constexpr float kLog2e = 1.44269504088896341f;
constexpr float kNothing = -1e30f;  // the exponent of a row that has seen no key
constexpr int kStep = kAttendStep;
constexpr int kGroups = kStep / kTile;

// What a softmax knows of some keys: sum of 2^(score - exponent), of the same times the values, and the exponent,
// a whole number. Whole exponents make every later rescaling exact: the result of a row does not depend on where
// the largest score stood, and bf16 weights round the same way wherever they are computed.
struct Partial {
  float *sums, *total, *exponent;
  bool empty() const { return *total == 0 && *exponent == kNothing; }  // a NaN is not empty
  void clear() const { *total = 0, *exponent = kNothing; }
};

// b joins a: the only rounding is that of one addition an element.
inline void join(const Partial& a, const Partial& b, int64_t width) {
  if (b.empty()) return;
  if (a.empty()) {
    std::memcpy(a.sums, b.sums, sizeof(float) * width);
    *a.total = *b.total;
    *a.exponent = *b.exponent;
    return;
  }
  const float top = std::max(*a.exponent, *b.exponent);
  const Vec of_a = power2(set1(*a.exponent - top)), of_b = power2(set1(*b.exponent - top));
  for (int64_t i = 0; i < width; i += 16) store(a.sums + i, load(a.sums + i) * of_a + load(b.sums + i) * of_b);
  float factors[2][16];
  store(factors[0], of_a);
  store(factors[1], of_b);
  *a.total = *a.total * factors[0][0] + *b.total * factors[1][0];
  *a.exponent = top;
}

// What a row has seen becomes its result; its head's sink takes its share of the weight.
inline void finish_row(const AttentionArgs& a, const Partial& p, int head, float* out) {
  float total = *p.total, share = 1.0f;
  if (a.sinks) {
    const float sink = a.sinks[head] * kLog2e, top = std::max(*p.exponent, std::ceil(sink));
    float factors[2][16];
    store(factors[0], power2(set1(*p.exponent - top)));
    store(factors[1], exp2(set1(sink - top)));
    share = factors[0][0];
    total = total * share + factors[1][0];
  }
  const Vec factor = set1(share / total);
  each_run(a.cache.head_dim, [&](int64_t i, int lanes) { put(out + i, load(p.sums + i) * factor, lanes); });
}

// n, n + 1, .. n + 15.
inline Vec from_number(int n) {
  static constexpr float kCount[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  return load(kCount) + set1(static_cast<float>(n));
}

// One step's keys and values: sixteen keys a group, groups that nobody may read stand for a readable one.
template <class T>
struct Step {
  int key0;
  const T* keys[kGroups];
  const T* values[kGroups];
  const float* key_scales[kGroups];  // where entries have such
  const float* value_scales[kGroups];
};

// The online softmax (Milakov & Gimelshein 2018; FlashAttention, Dao et al. 2022) of up to kAttendRows query rows
// of one KV head. A row is a (token, head of the group); its arithmetic depends on its own position alone: steps
// start at multiples of 64, segments at multiples of kSegment, and keys that a row cannot see change nothing.
template <CacheDtype D, bool Dot>
struct Attend {
  using E = Entry<D>;
  using S = typename E::type;                           // as it is stored
  using T = std::conditional_t<E::kWide, uint16_t, S>;  // as it is read
  static constexpr bool kPairs = E::kPairs || E::kWide;
  const AttentionArgs& a;
  const SequenceSpan& s;
  const int kv_head, first, rows;  // query rows first .. first+rows-1, counted over tokens and heads of the group
  const int group, width;
  const int64_t key_stride;  // from a dimension, or a pair of them, to the next
  float* const queries;      // [tile][width][kQueries], or pairs of bf16 where the products are bf16
  float* const sums;         // [rows][width]
  float* const lanes;        // [rows][16]: totals, lane by lane
  float* const exponents;    // [rows]
  uint16_t* const wide;      // entries of 8 bits as pairs: keys [pairs of dimensions][kStep], values [kStep/2][width]

  Attend(const AttentionArgs& args, const SequenceSpan& span, int head, int first_row, int n, float* scratch)
      : a(args),
        s(span),
        kv_head(head),
        first(first_row),
        rows(n),
        group(a.heads / a.cache.kv_heads),
        width((a.cache.head_dim + 15) / 16 * 16),
        key_stride(int64_t{kPairs ? 2 : 1} * (E::kWide ? kStep : a.cache.block_size)),
        queries(scratch),
        sums(queries + static_cast<int64_t>(kAttendRows) * width),
        lanes(sums + static_cast<int64_t>(kAttendRows) * width),
        exponents(lanes + kAttendRows * 16),
        wide(reinterpret_cast<uint16_t*>(exponents + kAttendRows + int64_t{kAttendRows} * (width + 16))) {}

  int pairs() const { return (a.cache.head_dim + 1) / 2; }

  int position(int row) const { return s.first_pos + (first + row) / group; }
  int high(int row) const { return a.high(s, position(row)); }
  int low(int row) const { return a.low(position(row)); }
  int head(int row) const { return kv_head * group + (first + row) % group; }
  float* out(int row) const {
    return a.out.row(s.first_row + (first + row) / group) + static_cast<int64_t>(head(row)) * a.cache.head_dim;
  }

  void take_queries(float* row_scratch) {
    for (int r = 0; r < rows; ++r) {
      const float* q = a.q.row(s.first_row + (first + r) / group) + static_cast<int64_t>(head(r)) * a.cache.head_dim;
      each_run(a.cache.head_dim, [&](int64_t i, int lanes) {
        const Vec x = take(q + i, lanes);
        if constexpr (Dot) store_bf16(reinterpret_cast<uint16_t*>(row_scratch) + i, x);
        else store(row_scratch + i, a.rounded ? rounded_bf16(x) : x);
      });
      float* to = queries + static_cast<int64_t>(r / kQueries) * kQueries * width + r % kQueries;
      const int words = Dot ? pairs() : a.cache.head_dim;
      for (int i = 0; i < words; ++i) std::memcpy(to + i * kQueries, row_scratch + i, 4);
    }
  }

  void forget() {
    std::fill(sums, sums + static_cast<int64_t>(rows) * width, 0.0f);
    std::fill(lanes, lanes + rows * 16, 0.0f);
    std::fill(exponents, exponents + rows, kNothing);
  }

  // Scores of R rows with W groups of sixteen keys; `next` (or null) is what the following step will read: into the
  // second cache, since the first one holds this step and the sums.
  template <int R, int W>
  void scores(const float* q, const T* const* keys, const T* const* next, Vec (*out)[W]) const {
    for (int r = 0; r < R; ++r)
      for (int w = 0; w < W; ++w) out[r][w] = zero();
    const int units = kPairs ? pairs() : a.cache.head_dim;
    for (int i = 0; i < units; ++i) {
      if (next)
        for (int w = 0; w < W; ++w) __builtin_prefetch(next[w] + i * key_stride, 0, 2);
      if constexpr (Dot) {
        for (int w = 0; w < W; ++w) {
          const Pairs k = load_pairs(reinterpret_cast<const uint32_t*>(keys[w] + i * key_stride));
          for (int r = 0; r < R; ++r) out[r][w] = dot(k, set1(q[i * kQueries + r]), out[r][w]);
        }
      } else if constexpr (kPairs) {
        const bool both = 2 * i + 1 < a.cache.head_dim;
        for (int w = 0; w < W; ++w) {
          const Pairs k = load_pairs(reinterpret_cast<const uint32_t*>(keys[w] + i * key_stride));
          const Vec k0 = even(k), k1 = odd(k);
          for (int r = 0; r < R; ++r) out[r][w] = fma(k0, set1(q[2 * i * kQueries + r]), out[r][w]);
          if (!both) continue;
          for (int r = 0; r < R; ++r) out[r][w] = fma(k1, set1(q[(2 * i + 1) * kQueries + r]), out[r][w]);
        }
      } else {
        for (int w = 0; w < W; ++w) {
          const Vec k = E::get(keys[w] + i * key_stride);
          for (int r = 0; r < R; ++r) out[r][w] = fma(k, set1(q[i * kQueries + r]), out[r][w]);
        }
      }
    }
  }

  // Scores become weights (in place, and as the values' product wants them); what was summed is rescaled later.
  // All: every key of the step is seen, so that the loops unroll; the arithmetic is the same.
  template <bool All>
  void softmax(int row, const Step<T>& step, int from, int to, float* score, void* weights, float* rescale) {
    const int key0 = step.key0;
    if (All) from = 0, to = kGroups;
    Vec t[kGroups], top = set1(-std::numeric_limits<float>::infinity());
    const Vec never = top;
    const int lo = low(row) - key0, hi = high(row) - key0;
    const bool whole = All || (lo <= from * kTile && hi >= to * kTile);
    for (int g = from; g < to; ++g) {
      t[g] = load(score + g * kTile);
      if (E::kScaled) t[g] = t[g] * load(step.key_scales[g]);
      if (a.softcap > 0) t[g] = set1(a.softcap * kLog2e) * tanh(t[g] * set1(a.scale / a.softcap));
      else t[g] = t[g] * set1(a.scale * kLog2e);
      if (a.slopes) t[g] = fma(set1(a.slopes[head(row)] * kLog2e), from_number(key0 + g * kTile - position(row)), t[g]);
      if (!whole) t[g] = between(t[g], never, lo - g * kTile, hi - g * kTile);
      top = max(top, t[g]);
    }
    *rescale = 1.0f;
    float& exponent = exponents[row];
    if (above(top, exponent)) {
      const float next = std::ceil(largest(top));
      float before[16];
      store(before, power2(set1(exponent - next)));
      *rescale = before[0];
      exponent = next;
    }
    Vec total = load(lanes + row * 16) * set1(*rescale);
    for (int g = from; g < to; ++g) {
      t[g] = exp2(t[g] - set1(exponent));
      if (!whole) t[g] = between(t[g], zero(), lo - g * kTile, hi - g * kTile);
      if (E::kScaled) {
        total = total + t[g];
        t[g] = t[g] * load(step.value_scales[g]);
        if (!whole) t[g] = between(t[g], zero(), lo - g * kTile, hi - g * kTile);
      }
      if (!Dot && a.rounded) t[g] = rounded_bf16(t[g]);
    }
    if constexpr (Dot) {
      if ((to - from) & 1) t[to] = zero();
      for (int g = from; g < to; g += 2) {
        const Pairs pairs = bf16_pairs(t[g], t[g + 1]);
        if (!E::kScaled) total = total + even(pairs) + odd(pairs);
        store(static_cast<uint16_t*>(weights) + g * kTile, pairs);
      }
    } else {
      for (int g = from; g < to; ++g) {
        if (!E::kScaled) total = total + t[g];
        store(static_cast<float*>(weights) + g * kTile, t[g]);
      }
    }
    store(lanes + row * 16, total);
  }

  // o += weights x values of the keys [from, to) of one group; v: the group's first key, at the dimension wanted.
  template <int R, int W>
  void add_values(const T* v, const T* next, int from, int to, const float (*weights)[kStep], int first_weight,
                  Vec (*o)[W]) const {
    constexpr int unit = kPairs ? 2 : 1;
    const int64_t stride = static_cast<int64_t>(a.cache.value_stride) * unit;
    const bool whole = from == 0 && to == kTile;
    for (int key = from / unit * unit; key < to; key += unit) {
      const T* at = v + key / unit * stride;
      if (next)
        for (int w = 0; w < W; ++w) __builtin_prefetch(next + key / unit * stride + 16 * unit * w, 0, 2);
      for (int w = 0; w < W; ++w) {
        if constexpr (kPairs) {
          Pairs pair = load_pairs(reinterpret_cast<const uint32_t*>(at) + 16 * w);
          // Slots outside hold other requests' old numbers: never multiplied, not even by zero.
          if (!whole) pair = only(pair, key >= from, key + 1 < to);
          if constexpr (Dot) {
            for (int r = 0; r < R; ++r) o[r][w] = dot(pair, set1(weights[r][(first_weight + key) / 2]), o[r][w]);
          } else {
            const Vec v0 = even(pair), v1 = odd(pair);
            for (int r = 0; r < R; ++r) o[r][w] = fma(v0, set1(weights[r][first_weight + key]), o[r][w]);
            for (int r = 0; r < R; ++r) o[r][w] = fma(v1, set1(weights[r][first_weight + key + 1]), o[r][w]);
          }
        } else {
          const Vec x = E::get(at + 16 * w);
          for (int r = 0; r < R; ++r) o[r][w] = fma(x, set1(weights[r][first_weight + key]), o[r][w]);
        }
      }
    }
  }

  // sums = sums * rescale + weights x values, keys [from, to) of the step, 16 W dimensions from d on.
  template <int R, int W>
  void accumulate(int row, int d, const Step<T>& step, const Step<T>* next, int from, int to,
                  const float (*weights)[kStep], const float* rescale) const {
    float* at = sums + static_cast<int64_t>(row) * width + d;
    const int column = kPairs ? 2 * d : d;
    Vec o[R][W];
    for (int r = 0; r < R; ++r)
      for (int w = 0; w < W; ++w) o[r][w] = load(at + r * width + 16 * w) * set1(rescale[r]);
    for (int g = from / kTile; g * kTile < to; ++g) {
      const T* ahead = next ? next->values[g] + column : nullptr;
      const int lo = std::max(0, from - g * kTile), hi = std::min(kTile, to - g * kTile);
      if (lo == 0 && hi == kTile) add_values<R, W>(step.values[g] + column, ahead, 0, kTile, weights, g * kTile, o);
      else add_values<R, W>(step.values[g] + column, ahead, lo, hi, weights, g * kTile, o);
    }
    for (int r = 0; r < R; ++r)
      for (int w = 0; w < W; ++w) store(at + r * width + 16 * w, o[r][w]);
  }

  template <int R>
  void tile(int row, const Step<T>& step, const Step<T>* next) {
    const int key_begin = std::max(0, low(row) - step.key0);
    const int key_end = std::min(kStep, high(row + R - 1) - step.key0);
    if (key_begin >= key_end) return;
    constexpr int W = kVectors;
    const int from = key_begin / kTile / W * W, to = (key_end + kTile - 1) / kTile;
    alignas(64) float score[R][kStep];
    alignas(64) float weights[R][kStep];
    float rescale[R];
    const float* q = queries + static_cast<int64_t>(row) * width;  // row is a multiple of kQueries
    for (int g = from; g < to; g += W) {
      Vec block[R][W];
      scores<R, W>(q, step.keys + g, next ? next->keys + g : nullptr, block);
      for (int r = 0; r < R; ++r)
        for (int w = 0; w < W; ++w) store(score[r] + (g + w) * kTile, block[r][w]);
    }
    for (int r = 0; r < R; ++r) {
      if (low(row + r) >= step.key0 + kStep || high(row + r) <= step.key0) {
        rescale[r] = 1.0f;
        std::memset(weights[r], 0, sizeof(weights[r]));
      } else {
        const bool all = low(row + r) <= step.key0 && high(row + r) >= step.key0 + kStep;
        if (all) softmax<true>(row + r, step, 0, kGroups, score[r], weights[r], rescale + r);
        else softmax<false>(row + r, step, from, to, score[r], weights[r], rescale + r);
      }
    }
    int d = 0;
    for (; d + 16 * W <= width; d += 16 * W) accumulate<R, W>(row, d, step, next, key_begin, key_end, weights, rescale);
    for (; d < width; d += 16) accumulate<R, 1>(row, d, step, next, key_begin, key_end, weights, rescale);
  }

  template <int R>
  void tile_of(int n, int row, const Step<T>& step, const Step<T>* next) {
    if constexpr (R > 0) {
      if (n == R) return tile<R>(row, step, next);
      tile_of<R - 1>(n, row, step, next);
    }
  }

  Step<S> step_at(int key0, int begin, int end) const {
    constexpr int unit = E::kPairs ? 2 : 1;
    const CacheView& c = a.cache;
    Step<S> step{key0, {}, {}, {}, {}};
    for (int g = 0; g < kGroups; ++g) {
      const int key = std::min(std::max(key0 + g * kTile, begin / kTile * kTile), (end - 1) / kTile * kTile);
      const Slot slot = slot_of(c, s, key - s.first_pos, kv_head);
      step.keys[g] = reinterpret_cast<const S*>(slot.key) + slot.at * unit;
      step.values[g] = reinterpret_cast<const S*>(slot.value) + static_cast<int64_t>(slot.at) * c.value_stride;
      if (!E::kScaled) continue;
      step.key_scales[g] = reinterpret_cast<const float*>(slot.key + c.key_codes()) + slot.at;
      step.value_scales[g] = reinterpret_cast<const float*>(slot.value + c.value_codes()) + slot.at;
    }
    return step;
  }

  // A step of 8-bit entries as pairs; the groups that hold a key of [begin, end), all that is read of it.
  Step<T> widened(const Step<S>& step, const Step<S>& next, int begin, int end) const {
    static constexpr uint8_t kZeros[kTile] = {};
    const int block_size = a.cache.block_size, whole = a.cache.head_dim / 2, w = width;
#if OCTAVO_FP8_DOT
    static const EntryTable table;
#endif
    uint16_t* const keys = wide;
    uint16_t* const values = wide + int64_t{2} * pairs() * kStep;
    Step<T> out{step.key0, {}, {}, {}, {}};
    for (int g = 0; g < kGroups; ++g) {
      uint16_t* const to_keys = keys + 2 * g * kTile;
      uint16_t* const to_values = values + g * kTile * w;
      out.keys[g] = to_keys;
      out.values[g] = to_values;
      out.key_scales[g] = step.key_scales[g];
      out.value_scales[g] = step.value_scales[g];
      if (step.key0 + (g + 1) * kTile <= begin || step.key0 + g * kTile >= end) continue;
      const S* const k = step.keys[g];
      const S* const v = step.values[g];
      for (int64_t at = 0; at < w * kTile; at += 64) {
        __builtin_prefetch(next.keys[g] + at / kTile * block_size, 0, 2);
        __builtin_prefetch(next.values[g] + at, 0, 2);
      }
      int i = 0;
#if OCTAVO_FP8_DOT
      if (D == CacheDtype::f8 && block_size == kTile)
        for (; i + 2 <= whole; i += 2)
          table.keys(k + 2 * i * kTile, to_keys + 2 * kStep * i, to_keys + 2 * kStep * (i + 1));
#endif
      for (; i < whole; ++i)
        store(to_keys + 2 * kStep * i, E::pairs(k + 2 * i * block_size, k + (2 * i + 1) * block_size));
      if (a.cache.head_dim & 1) store(to_keys + 2 * kStep * whole, E::pairs(k + 2 * whole * block_size, kZeros));
      for (int key = 0; key < kTile; key += 2) {
        int d = 0;
#if OCTAVO_FP8_DOT
        for (; D == CacheDtype::f8 && d + 64 <= w; d += 64)
          table.values(v + key * w + d, v + (key + 1) * w + d, to_values + key * w + 2 * d);
#endif
        for (; d < w; d += 16) store(to_values + key * w + 2 * d, E::pairs(v + key * w + d, v + (key + 1) * w + d));
      }
    }
    return out;
  }

  // Keys [begin, end), all of one segment, for every row.
  void segment(int begin, int end) {
    forget();
    int key0 = begin / kStep * kStep;
    Step<S> now = step_at(key0, begin, end);
    for (; key0 < end; key0 += kStep) {
      const bool more = key0 + kStep < end;
      const Step<S> next = more ? step_at(key0 + kStep, begin, end) : now;
      if constexpr (E::kWide) {
        const Step<T> step = widened(now, next, begin, end);
        for (int row = 0; row < rows; row += kQueries)
          tile_of<kQueries>(std::min(kQueries, rows - row), row, step, nullptr);
      } else {
        for (int row = 0; row < rows; row += kQueries)
          tile_of<kQueries>(std::min(kQueries, rows - row), row, now, more && row == 0 ? &next : nullptr);
      }
      now = next;
    }
  }

  Partial partial(int row) {
    float* at = lanes + row * 16;
    *at = sum(load(at));
    return {sums + static_cast<int64_t>(row) * width, at, exponents + row};
  }
};

template <CacheDtype D, bool Dot>
void attend_typed(const AttentionArgs& a, const SequenceSpan& s, const AttendRange& t, float* scratch) {
  const int group = a.heads / a.cache.kv_heads;
  const int64_t part = a.partial_floats();
  float* const joined = scratch + attend_rows_floats(a.cache.head_dim);
  for (int first = t.row_begin * group; first < t.row_end * group; first += kAttendRows) {
    const int rows = std::min(kAttendRows, t.row_end * group - first);
    Attend<D, Dot> work(a, s, t.kv_head, first, rows, scratch);
    const auto place = [&](float* p) { return Partial{p, p + work.width, p + work.width + 1}; };
    work.take_queries(joined);
    const int begin = std::max(work.low(0), t.key_begin), end = std::min(work.high(rows - 1), t.key_end);
    if (!t.partials)
      for (int r = 0; r < rows; ++r) place(joined + r * part).clear();
    for (int at = begin; at < end; at = (at / kSegment + 1) * kSegment) {
      work.segment(at, std::min(end, (at / kSegment + 1) * kSegment));
      for (int r = 0; r < rows; ++r) {
        float* to = t.partials ? t.partials + ((first + r) * t.segments + at / kSegment) * part : joined + r * part;
        const Partial to_part = place(to);
        if (t.partials) to_part.clear();
        join(to_part, work.partial(r), work.width);
      }
    }
    if (!t.partials)
      for (int r = 0; r < rows; ++r) finish_row(a, place(joined + r * part), work.head(r), work.out(r));
  }
}

// Where bf16 products are wanted and the set has them.
template <CacheDtype D>
void attend_pairs(const AttentionArgs& a, const SequenceSpan& s, const AttendRange& t, float* scratch) {
#if OCTAVO_BF16_DOT
  if (a.rounded) return attend_typed<D, true>(a, s, t, scratch);
#endif
  return attend_typed<D, false>(a, s, t, scratch);
}

void attend(const AttentionArgs& a, const SequenceSpan& s, const AttendRange& t, float* scratch) {
  switch (a.cache.dtype) {
    case CacheDtype::f32:
      return attend_typed<CacheDtype::f32, false>(a, s, t, scratch);
    case CacheDtype::f16:
      return attend_typed<CacheDtype::f16, false>(a, s, t, scratch);
    case CacheDtype::bf16:
      return attend_pairs<CacheDtype::bf16>(a, s, t, scratch);
    case CacheDtype::int8:
      return attend_pairs<CacheDtype::int8>(a, s, t, scratch);
    case CacheDtype::f8:
      return attend_pairs<CacheDtype::f8>(a, s, t, scratch);
  }
}

// Joins what attend() left in `partials`, in the order that one task would have joined it.
void attend_join(const AttentionArgs& a, const SequenceSpan& s, const AttendRange& t) {
  const int group = a.heads / a.cache.kv_heads;
  const int64_t part = a.partial_floats(), width = part - 16;
  for (int r = t.row_begin * group; r < t.row_end * group; ++r) {
    const int pos = s.first_pos + r / group, head = t.kv_head * group + r % group;
    const int low = a.low(pos), last = a.high(s, pos) - 1;
    float* at = t.partials + (r * t.segments + low / kSegment) * part;
    const auto place = [&](float* p) { return Partial{p, p + width, p + width + 1}; };
    for (int i = low / kSegment + 1; i <= last / kSegment; ++i)
      join(place(at), place(t.partials + (r * t.segments + i) * part), width);
    finish_row(a, place(at), head, a.out.row(s.first_row + r / group) + static_cast<int64_t>(head) * a.cache.head_dim);
  }
}
