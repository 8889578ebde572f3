// The kernels, written once; each ISA file defines OCTAVO_ISA and includes this.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "kernels.h"
#include "simd.h"

#if defined(__AVX512BF16__) && defined(__AVX512F__)
#define OCTAVO_BF16_DOT 1
#else
#define OCTAVO_BF16_DOT 0
#endif

namespace octavo::OCTAVO_ISA {
namespace {

#if defined(__AVX512F__)
constexpr int kRows = 12;    // tokens in the register tile of linear (2 chains each)
constexpr int kQueries = 8;  // query rows that share one read of keys and values
#elif defined(__AVX2__)
constexpr int kRows = 3;
constexpr int kQueries = 4;
#else
constexpr int kRows = 4;
constexpr int kQueries = 4;
#endif

// ---- linear ---------------------------------------------------------------------------------------------
// Every (token, output row) is two chains, over even and odd k (or pairs of k), added at the end: the same
// order whatever the number of tokens, so that an answer does not depend on the batch.

constexpr int kAhead = 12 * 64;  // bytes of prefetch distance on the weight stream

template <int M>
inline void finish_rows(const LinearArgs& a, int64_t row, int64_t tile, const Vec* even_sum, const Vec* odd_sum) {
  const int64_t first = tile * kTile;
  const int n = static_cast<int>(std::min<int64_t>(kTile, a.weight.rows - first));
  const Vec bias = a.bias ? load(a.bias + first, n) : zero();
  for (int m = 0; m < M; ++m) {
    const Vec y = even_sum[m] + odd_sum[m];
    store(a.out.row(row + m) + first, a.bias ? y + bias : y, n);
  }
}

template <int M, Dtype D>
void linear_tile(const LinearArgs& a, int64_t row, int64_t tile) {
  const char* w = static_cast<const char*>(a.weight.data) + tile * a.weight.tile_bytes();
  const float* x = a.x + row * a.x_stride;
  Vec s0[M], s1[M];
  for (int m = 0; m < M; ++m) s0[m] = s1[m] = zero();
  const int64_t pairs = a.weight.cols / 2;
  constexpr int step = D == Dtype::f32 ? 128 : 64;  // bytes of two k
  for (int64_t p = 0; p < pairs; ++p, w += step) {
    if (M <= 4) __builtin_prefetch(w + kAhead);
    Vec w0, w1;
    if constexpr (D == Dtype::bf16) {
      const Pairs pair = load_pairs(reinterpret_cast<const uint32_t*>(w));
      w0 = even(pair);
      w1 = odd(pair);
    } else if constexpr (D == Dtype::f16) {
      w0 = load_f16(reinterpret_cast<const uint16_t*>(w));
      w1 = load_f16(reinterpret_cast<const uint16_t*>(w) + 16);
    } else {
      w0 = load(reinterpret_cast<const float*>(w));
      w1 = load(reinterpret_cast<const float*>(w) + 16);
    }
    for (int m = 0; m < M; ++m) {
      s0[m] = fma(w0, set1(x[m * a.x_stride + 2 * p]), s0[m]);
      s1[m] = fma(w1, set1(x[m * a.x_stride + 2 * p + 1]), s1[m]);
    }
  }
  if (a.weight.cols & 1) {
    Vec w0;
    if constexpr (D == Dtype::bf16) w0 = even(load_pairs(reinterpret_cast<const uint32_t*>(w)));
    else if constexpr (D == Dtype::f16) w0 = load_f16(reinterpret_cast<const uint16_t*>(w));
    else w0 = load(reinterpret_cast<const float*>(w));
    for (int m = 0; m < M; ++m) s0[m] = fma(w0, set1(x[m * a.x_stride + a.weight.cols - 1]), s0[m]);
  }
  finish_rows<M>(a, row, tile, s0, s1);
}

#if OCTAVO_BF16_DOT
// Two bf16 products a lane and instruction (vdpbf16ps), float32 sums.
template <int M>
void linear_tile_dot(const LinearArgs& a, int64_t row, int64_t tile) {
  const char* w = static_cast<const char*>(a.weight.data) + tile * a.weight.tile_bytes();
  const uint16_t* x = a.x_bf16 + row * a.x_stride;
  Vec s0[M], s1[M];
  for (int m = 0; m < M; ++m) s0[m] = s1[m] = zero();
  const int64_t pairs = (a.weight.cols + 1) / 2;
  const auto pair_at = [&](int m, int64_t p) {
    int32_t both;
    std::memcpy(&both, x + m * a.x_stride + 2 * p, 4);
    return reinterpret_cast<__m512bh>(_mm512_set1_epi32(both));
  };
  int64_t p = 0;
  for (; p + 1 < pairs; p += 2, w += 128) {
    if (M <= 4) {
      __builtin_prefetch(w + kAhead);
      __builtin_prefetch(w + kAhead + 64);
    }
    const auto w0 = reinterpret_cast<__m512bh>(_mm512_loadu_si512(w));
    const auto w1 = reinterpret_cast<__m512bh>(_mm512_loadu_si512(w + 64));
    for (int m = 0; m < M; ++m) {
      s0[m].v = _mm512_dpbf16_ps(s0[m].v, w0, pair_at(m, p));
      s1[m].v = _mm512_dpbf16_ps(s1[m].v, w1, pair_at(m, p + 1));
    }
  }
  if (p < pairs) {
    const auto w0 = reinterpret_cast<__m512bh>(_mm512_loadu_si512(w));
    for (int m = 0; m < M; ++m) s0[m].v = _mm512_dpbf16_ps(s0[m].v, w0, pair_at(m, p));
  }
  finish_rows<M>(a, row, tile, s0, s1);
}
#endif

template <int M>
void linear_rows(const LinearArgs& a, int64_t row, int64_t tile) {
#if OCTAVO_BF16_DOT
  if (a.x_bf16) return linear_tile_dot<M>(a, row, tile);
#endif
  switch (a.weight.dtype) {
    case Dtype::bf16:
      return linear_tile<M, Dtype::bf16>(a, row, tile);
    case Dtype::f16:
      return linear_tile<M, Dtype::f16>(a, row, tile);
    case Dtype::f32:
      return linear_tile<M, Dtype::f32>(a, row, tile);
  }
}

template <int M>
void linear_rest(const LinearArgs& a, int64_t row, int64_t tile, int64_t rest) {
  if constexpr (M > 0) {
    if (rest == M) return linear_rows<M>(a, row, tile);
    linear_rest<M - 1>(a, row, tile, rest);
  }
}

void linear(const LinearArgs& a, int64_t tile_begin, int64_t tile_end) {
  for (int64_t row = 0; row < a.n; row += kRows) {
    const int64_t rest = a.n - row;
    for (int64_t tile = tile_begin; tile < tile_end; ++tile) {
      if (rest >= kRows) linear_rows<kRows>(a, row, tile);
      else linear_rest<kRows - 1>(a, row, tile, rest);
    }
  }
}

void matrix_row(const PackedMatrix& w, int64_t row, float* out) {
  const char* tile = static_cast<const char*>(w.data) + row / kTile * w.tile_bytes();
  const int64_t lane = row % kTile;
  switch (w.dtype) {
    case Dtype::f32:
      for (int64_t k = 0; k < w.cols; ++k) out[k] = reinterpret_cast<const float*>(tile)[k * kTile + lane];
      return;
    case Dtype::f16:
      for (int64_t k = 0; k < w.cols; ++k) {
        float lanes[16];
        store(lanes, load_f16(reinterpret_cast<const uint16_t*>(tile) + k * kTile));
        out[k] = lanes[lane];
      }
      return;
    case Dtype::bf16:
      for (int64_t k = 0; k < w.cols; ++k)
        out[k] = bf16_to_float(reinterpret_cast<const uint16_t*>(tile)[(k / 2 * kTile + lane) * 2 + k % 2]);
      return;
  }
}

float read(const float* p, int64_t n) {
  Vec s[4] = {zero(), zero(), zero(), zero()};
  for (int64_t i = 0; i < n; i += 64) {
    __builtin_prefetch(reinterpret_cast<const char*>(p + i) + kAhead);
    for (int j = 0; j < 4; ++j) s[j] = s[j] + load(p + i + 16 * j);
  }
  return sum((s[0] + s[1]) + (s[2] + s[3]));
}

// ---- rounding, norms, elementwise -------------------------------------------------------------------------

void round_bf16(const float* in, uint16_t* out, int64_t n) {
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) store_bf16(out + i, load(in + i));
  for (; i < n; ++i) out[i] = float_to_bf16(in[i]);
  if (n & 1) out[n] = 0;
}

void round_bf16_f32(const float* in, float* out, int64_t n) {
  for (int64_t i = 0; i < n; ++i) out[i] = bf16_to_float(float_to_bf16(in[i]));
}

// Applies f(vector, index, lanes) to runs of 16; the last one may be shorter.
template <class F>
inline void each_run(int64_t n, F f) {
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) f(i, 16);
  if (i < n) f(i, static_cast<int>(n - i));
}

// Loads 16 or fewer floats; the missing ones are zero.
inline Vec take(const float* p, int lanes) { return lanes == 16 ? load(p) : load(p, lanes); }
inline void put(float* p, Vec x, int lanes) { lanes == 16 ? store(p, x) : store(p, x, lanes); }

void rms_norm(const float* x, float* out, const float* weight, float offset, float eps, int64_t group, int64_t n) {
  for (int64_t g = 0; g < n; g += group) {
    Vec squares = zero();
    each_run(group, [&](int64_t i, int lanes) {
      const Vec v = take(x + g + i, lanes);
      squares = fma(v, v, squares);
    });
    const Vec factor = set1(1.0f / std::sqrt(sum(squares) / static_cast<float>(group) + eps));
    each_run(group, [&](int64_t i, int lanes) {
      const Vec v = take(x + g + i, lanes) * factor;
      put(out + g + i, weight ? v * (take(weight + i, lanes) + set1(offset)) : v, lanes);
    });
  }
}

void layer_norm(const float* x, float* out, const float* weight, const float* bias, float eps, int64_t group,
                int64_t n) {
  for (int64_t g = 0; g < n; g += group) {
    Vec total = zero();
    each_run(group, [&](int64_t i, int lanes) { total = total + take(x + g + i, lanes); });
    const float mean = sum(total) / static_cast<float>(group);
    Vec squares = zero();
    each_run(group, [&](int64_t i, int lanes) {
      const Vec v = between(take(x + g + i, lanes) - set1(mean), zero(), 0, lanes);
      squares = fma(v, v, squares);
    });
    const Vec factor = set1(1.0f / std::sqrt(sum(squares) / static_cast<float>(group) + eps));
    each_run(group, [&](int64_t i, int lanes) {
      Vec v = (take(x + g + i, lanes) - set1(mean)) * factor;
      if (weight) v = v * take(weight + i, lanes);
      if (bias) v = v + take(bias + i, lanes);
      put(out + g + i, v, lanes);
    });
  }
}

void add(const float* x, const float* y, float* out, int64_t n) {
  each_run(n, [&](int64_t i, int lanes) { put(out + i, take(x + i, lanes) + take(y + i, lanes), lanes); });
}

void mul(const float* x, const float* y, float* out, int64_t n) {
  each_run(n, [&](int64_t i, int lanes) { put(out + i, take(x + i, lanes) * take(y + i, lanes), lanes); });
}

void scale(const float* x, float factor, float* out, int64_t n) {
  each_run(n, [&](int64_t i, int lanes) { put(out + i, take(x + i, lanes) * set1(factor), lanes); });
}

void softcap(const float* x, float* out, float cap, int64_t n) {
  each_run(n,
           [&](int64_t i, int lanes) { put(out + i, set1(cap) * tanh(take(x + i, lanes) * set1(1.0f / cap)), lanes); });
}

inline Vec erf_each(Vec x) {
  float v[16];
  store(v, x);
  for (float& f : v) f = std::erf(f);
  return load(v);
}

inline Vec activate(Vec x, Activation kind) {
  switch (kind) {
    case Activation::silu:
      return x * sigmoid(x);
    case Activation::gelu:
      return set1(0.5f) * x * (set1(1.0f) + erf_each(x * set1(0.70710678118654752f)));
    case Activation::gelu_tanh: {
      const Vec inner = set1(0.79788456080286536f) * fma(set1(0.044715f) * x * x, x, x);
      return set1(0.5f) * x * (set1(1.0f) + tanh(inner));
    }
    case Activation::relu:
      return max(zero(), x);
    case Activation::relu2:
      return max(zero(), x) * max(zero(), x);
    case Activation::quick_gelu:
      return x * sigmoid(set1(1.702f) * x);
  }
  return x;
}

void activation(const float* x, float* out, Activation kind, int64_t n) {
  each_run(n, [&](int64_t i, int lanes) { put(out + i, activate(take(x + i, lanes), kind), lanes); });
}

void gated(const float* gate, const float* up, float* out, Activation kind, int64_t n) {
  each_run(n, [&](int64_t i, int lanes) {
    put(out + i, activate(take(gate + i, lanes), kind) * take(up + i, lanes), lanes);
  });
}

void rotate(const float* x, float* out, const float* table, int rotary_dim, int head_dim, int heads, bool interleaved) {
  const int half = rotary_dim / 2;
  const float* cosines = table;
  const float* sines = table + half;
  for (int h = 0; h < heads; ++h, x += head_dim, out += head_dim) {
    if (interleaved) {
      for (int i = 0; i < half; ++i) {
        const float a = x[2 * i], b = x[2 * i + 1];
        out[2 * i] = a * cosines[i] - b * sines[i];
        out[2 * i + 1] = b * cosines[i] + a * sines[i];
      }
    } else {
      each_run(half, [&](int64_t i, int lanes) {
        const Vec a = take(x + i, lanes), b = take(x + half + i, lanes);
        const Vec c = take(cosines + i, lanes), s = take(sines + i, lanes);
        put(out + i, a * c - b * s, lanes);
        put(out + half + i, b * c + a * s, lanes);
      });
    }
    if (out != x) std::memcpy(out + rotary_dim, x + rotary_dim, sizeof(float) * (head_dim - rotary_dim));
  }
}

// ---- attention --------------------------------------------------------------------------------------------

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

}  // namespace

const Kernels* table() {
  static const Kernels kernels = {OCTAVO_ISA_NAME,
                                  OCTAVO_BF16_DOT != 0,
                                  linear,
                                  round_bf16,
                                  round_bf16_f32,
                                  rms_norm,
                                  layer_norm,
                                  add,
                                  mul,
                                  scale,
                                  activation,
                                  gated,
                                  softcap,
                                  rotate,
                                  write_kv,
                                  attend,
                                  matrix_row,
                                  read};
  return &kernels;
}

}  // namespace octavo::OCTAVO_ISA
