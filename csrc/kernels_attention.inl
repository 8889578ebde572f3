// Attention over the paged cache: part of kernels.inl.

template <Dtype D>
struct Entry;
template <>
struct Entry<Dtype::f32> {
  using type = float;
  static Vec get(const float* p) { return load(p); }
  static void put(float* p, float x) { *p = x; }
  static void put16(float* p, Vec x) { store(p, x); }
};
template <>
struct Entry<Dtype::bf16> {
  using type = uint16_t;
  static Vec get(const uint16_t* p) { return load_bf16(p); }
  static void put(uint16_t* p, float x) { *p = float_to_bf16(x); }
  static void put16(uint16_t* p, Vec x) { store_bf16(p, x); }
};
template <>
struct Entry<Dtype::f16> {
  using type = uint16_t;
  static Vec get(const uint16_t* p) { return load_f16(p); }
  static void put16(uint16_t* p, Vec x) { store_f16(p, x); }
  static void put(uint16_t* p, float x) {
    uint16_t lanes[16];
    store_f16(lanes, set1(x));
    *p = lanes[0];
  }
};

template <Dtype D>
void write_kv_row(const AttentionArgs& a, const SequenceSpan& s, int row) {
  using E = Entry<D>;
  using T = typename E::type;
  const CacheView& c = a.cache;
  const int pos = s.first_pos + row, slot = pos % c.block_size;
  const int64_t block = s.blocks[pos / c.block_size];
  T* keys = static_cast<T*>(c.keys) + block * c.key_block();
  T* values = static_cast<T*>(c.values) + block * c.value_block();
  const float* k = a.k.row(s.first_row + row);
  const float* v = a.v.row(s.first_row + row);
  for (int h = 0; h < c.kv_heads; ++h) {
    T* key = keys + static_cast<int64_t>(h) * c.head_dim * c.block_size + slot;
    for (int d = 0; d < c.head_dim; ++d) E::put(key + static_cast<int64_t>(d) * c.block_size, k[h * c.head_dim + d]);
    T* value = values + (static_cast<int64_t>(h) * c.block_size + slot) * c.value_stride;
    each_run(c.head_dim, [&](int64_t i, int lanes) { E::put16(value + i, take(v + h * c.head_dim + i, lanes)); });
  }
}

void write_kv(const AttentionArgs& a, const SequenceSpan& s, int row) {
  switch (a.cache.dtype) {
    case Dtype::f32:
      return write_kv_row<Dtype::f32>(a, s, row);
    case Dtype::bf16:
      return write_kv_row<Dtype::bf16>(a, s, row);
    case Dtype::f16:
      return write_kv_row<Dtype::f16>(a, s, row);
  }
}

// The online softmax (Milakov & Gimelshein 2018; FlashAttention) of up to R query rows over keys in steps of
// sixteen. Each row's arithmetic depends on its own position alone: steps that it cannot see change nothing.
template <Dtype D, int R>
struct Attend {
  using E = Entry<D>;
  using T = typename E::type;
  const AttentionArgs& a;
  const SequenceSpan& s;
  int kv_head;
  const float* q[R];
  int low[R], high[R];  // keys low .. high-1 are seen
  float* sums;          // [R][width16]
  int width16;
  float m[R], l[R];

  void scores(const T* keys, int key0, Vec* out) const {
    const CacheView& c = a.cache;
    for (int r = 0; r < R; ++r) out[r] = zero();
    for (int d = 0; d < c.head_dim; ++d) {
      const Vec k = E::get(keys + static_cast<int64_t>(d) * c.block_size);
      for (int r = 0; r < R; ++r) out[r] = fma(k, set1(q[r][d]), out[r]);
    }
    const Vec never = set1(-std::numeric_limits<float>::infinity());
    for (int r = 0; r < R; ++r) {
      out[r] = out[r] * set1(a.scale);
      if (a.softcap > 0) out[r] = set1(a.softcap) * tanh(out[r] * set1(1.0f / a.softcap));
      out[r] = between(out[r], never, low[r] - key0, high[r] - key0);
    }
  }

  // Turns scores into weights and rescales what was summed; false when no row sees any of these keys.
  bool softmax(int key0, Vec* score, float (*weights)[16], float* rescale) {
    bool any = false;
    for (int r = 0; r < R; ++r) {
      rescale[r] = 1.0f;
      store(weights[r], zero());
      if (low[r] >= key0 + kTile || high[r] <= key0) continue;
      any = true;
      const float top = std::max(m[r], largest(score[r]));
      const Vec p = between(exp(score[r] - set1(top)), zero(), low[r] - key0, high[r] - key0);
      float before[16];
      store(before, exp(set1(m[r] - top)));
      rescale[r] = m[r] == -std::numeric_limits<float>::infinity() ? 0.0f : before[0];
      l[r] = l[r] * rescale[r] + sum(p);
      m[r] = top;
      store(weights[r], p);
    }
    return any;
  }

  void accumulate(const T* values, int keys, const float (*weights)[16], const float* rescale) {
    const CacheView& c = a.cache;
    for (int d = 0; d < width16; d += 16) {
      Vec o[R];
      for (int r = 0; r < R; ++r) o[r] = load(sums + r * width16 + d) * set1(rescale[r]);
      for (int key = 0; key < keys; ++key) {
        const Vec v = E::get(values + static_cast<int64_t>(key) * c.value_stride + d);
        for (int r = 0; r < R; ++r) o[r] = fma(v, set1(weights[r][key]), o[r]);
      }
      for (int r = 0; r < R; ++r) store(sums + r * width16 + d, o[r]);
    }
  }

  void run() {
    const CacheView& c = a.cache;
    int begin = low[0], end = high[0];
    for (int r = 0; r < R; ++r) {
      begin = std::min(begin, low[r]);
      end = std::max(end, high[r]);
      m[r] = -std::numeric_limits<float>::infinity();
      l[r] = 0;
    }
    std::fill(sums, sums + static_cast<size_t>(R) * width16, 0.0f);
    for (int key0 = begin / kTile * kTile; key0 < end; key0 += kTile) {
      const int64_t block = s.blocks[key0 / c.block_size];
      const int slot = key0 % c.block_size;
      const T* keys = static_cast<const T*>(c.keys) + block * c.key_block() +
                      static_cast<int64_t>(kv_head) * c.head_dim * c.block_size + slot;
      const T* values = static_cast<const T*>(c.values) + block * c.value_block() +
                        (static_cast<int64_t>(kv_head) * c.block_size + slot) * c.value_stride;
      Vec score[R];
      float weights[R][16], rescale[R];
      scores(keys, key0, score);
      // Slots past the last key hold other requests' old numbers: never multiplied, not even by zero.
      if (softmax(key0, score, weights, rescale)) accumulate(values, std::min(kTile, end - key0), weights, rescale);
    }
  }
};

template <Dtype D, int R>
void attend_rows(const AttentionArgs& a, const SequenceSpan& s, int kv_head, int first, float* scratch) {
  const CacheView& c = a.cache;
  const int group = a.heads / c.kv_heads;
  Attend<D, R> work{a, s, kv_head, {}, {}, {}, scratch, (c.head_dim + 15) / 16 * 16, {}, {}};
  for (int r = 0; r < R; ++r) {
    const int row = (first + r) / group, head = kv_head * group + (first + r) % group;
    const int pos = s.first_pos + row;
    work.q[r] = a.q.row(s.first_row + row) + static_cast<int64_t>(head) * c.head_dim;
    work.high[r] = pos + 1;
    work.low[r] = a.window > 0 ? std::max(0, pos - a.window + 1) : 0;
  }
  work.run();
  for (int r = 0; r < R; ++r) {
    const int row = (first + r) / group, head = kv_head * group + (first + r) % group;
    float* out = a.out.row(s.first_row + row) + static_cast<int64_t>(head) * c.head_dim;
    const Vec norm = set1(1.0f / work.l[r]);
    each_run(c.head_dim, [&](int64_t i, int lanes) {
      put(out + i, load(scratch + static_cast<int64_t>(r) * work.width16 + i) * norm, lanes);
    });
  }
}

template <Dtype D, int R>
void attend_rest(const AttentionArgs& a, const SequenceSpan& s, int kv_head, int first, int rest, float* scratch) {
  if constexpr (R > 0) {
    if (rest == R) return attend_rows<D, R>(a, s, kv_head, first, scratch);
    attend_rest<D, R - 1>(a, s, kv_head, first, rest, scratch);
  }
}

template <Dtype D>
void attend_typed(const AttentionArgs& a, const SequenceSpan& s, int kv_head, int row_begin, int row_end,
                  float* scratch) {
  const int group = a.heads / a.cache.kv_heads;
  for (int first = row_begin * group; first < row_end * group; first += kQueries) {
    const int rest = std::min(kQueries, row_end * group - first);
    attend_rest<D, kQueries>(a, s, kv_head, first, rest, scratch);
  }
}

void attend(const AttentionArgs& a, const SequenceSpan& s, int kv_head, int row_begin, int row_end, float* scratch) {
  switch (a.cache.dtype) {
    case Dtype::f32:
      return attend_typed<Dtype::f32>(a, s, kv_head, row_begin, row_end, scratch);
    case Dtype::bf16:
      return attend_typed<Dtype::bf16>(a, s, kv_head, row_begin, row_end, scratch);
    case Dtype::f16:
      return attend_typed<Dtype::f16>(a, s, kv_head, row_begin, row_end, scratch);
  }
}
