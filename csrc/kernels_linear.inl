// Matrix products: part of kernels.inl.
//
// Every (token, output row) is two chains, over even and odd k (or pairs of k), added at the end: the same
// order whatever the number of tokens, so that an answer does not depend on the batch.

constexpr int kMiddling = 8;  // rows of a panel where there are some

// The rows of a product of dense weights. Those of one panel wait for each line of weights; where there is enough to
// compute, two or more panels of middling height have the next tile fetched meanwhile.
inline Panels dense_panels(int64_t n) {
  constexpr int64_t few = 4, some = 64;
  if (n <= few || n > some) return {n, kRows};
  return {n, std::min<int64_t>({kRows, kMiddling, (n + 1) / 2})};
}

// Row `row` of `rows`, as dot_tile reads it: panels of [pairs of columns, rows], the odd column with a zero.
void round_bf16(const float* in, int64_t n, uint16_t* out, int64_t rows, int64_t row) {
  const Panels panels = dense_panels(rows);
  const int64_t panel_index = panels.of(row), first = panels.first(panel_index), height = panels.rows(panel_index);
  const int64_t pairs = (n + 1) / 2;
  uint16_t* panel = out + first * pairs * 2 + (row - first) * 2;
  for (int64_t i = 0; i < n; i += 16) {
    uint16_t halves[16];
    store_bf16(halves, load(in + i, static_cast<int>(std::min<int64_t>(16, n - i))));
    for (int64_t j = 0; j < 8 && i / 2 + j < pairs; ++j)
      std::memcpy(panel + (i / 2 + j) * height * 2, halves + 2 * j, 4);
  }
}

template <int M>
inline void finish_rows(const LinearArgs& a, int64_t row, int64_t tile, const Vec* even_sum, const Vec* odd_sum) {
  const int64_t first = tile * kTile;
  const int n = static_cast<int>(std::min<int64_t>(kTile, a.weight.rows - first));
  const Vec bias = a.bias ? load(a.bias + first, n) : zero();
  for (int m = 0; m < M; ++m) {
    const Vec y = even_sum[m] + odd_sum[m];
    put_tile(a, row + m, first, n, a.bias ? y + bias : y);
  }
}

template <int M, Dtype D>
void linear_tile(const LinearArgs& a, int64_t row, int64_t tile, Ahead ahead, int64_t fetched) {
  const char* w = static_cast<const char*>(a.weight.data) + tile * a.weight.tile_bytes();
  const float* x = a.x + row * a.x_stride;
  Vec s0[M], s1[M];
  for (int m = 0; m < M; ++m) s0[m] = s1[m] = zero();
  const int64_t pairs = a.weight.cols / 2;
  constexpr int step = D == Dtype::f32 ? 128 : 64;  // bytes of two k
  for (int64_t p = 0; p < pairs; ++p, w += step) {
    if (fetched == 128) ahead.fetch<true>(step / 64, step);
    else ahead.fetch<false>(step / 64, fetched * step / 128);
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
// A register tile of bf16 products: some rows of a panel by W tiles of weights `stride` bytes apart (the last one
// alone: 0).
struct DotTask {
  const LinearArgs& a;
  const char* data;   // of the first tile
  const uint16_t* x;  // the rows' first pair in their panel
  int64_t row, height, tile;
  size_t stride;
  Ahead ahead;  // what is fetched meanwhile: `lines` lines, `step` bytes apart, every four columns
  int lines;
  int64_t step;
};

// Two bf16 products a lane and instruction (vdpbf16ps), float32 sums. Two tiles side by side halve the loads of inputs,
// of which a processor with two such products a cycle would wait for.
template <int M, int W>
__attribute__((noinline)) void dot_tile(const DotTask& task) {
  const int64_t pairs = (task.a.weight.cols + 1) / 2, height = 2 * task.height;
  const char* w = task.data;
  const uint16_t* x = task.x;
  Ahead ahead = task.ahead;
  Vec even_sum[M * W], odd_sum[M * W];
  clear<M * W>(even_sum);
  clear<M * W>(odd_sum);
  const auto add = [&](int64_t at, const uint16_t* inputs, Vec* sums) {
    __m512bh weights[W];
#pragma GCC unroll 2
    for (int t = 0; t < W; ++t)
      weights[t] = reinterpret_cast<__m512bh>(_mm512_loadu_si512(w + task.stride * static_cast<size_t>(t) + at));
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m)
#pragma GCC unroll 2
      for (int t = 0; t < W; ++t) sums[m * W + t] = dot_pairs(sums[m * W + t], weights[t], inputs + 2 * m);
  };
  int64_t p = 0;
  for (; p + 1 < pairs; p += 2, w += 128, x += 2 * height) {
    if (W == 1 && task.step == 128) ahead.fetch<true>(2, 128);
    else ahead.fetch<false>(task.lines, task.step);
    add(0, x, even_sum);
    add(64, x + height, odd_sum);
  }
  if (p < pairs) add(0, x, even_sum);
  for (int t = 0; t < (task.stride ? W : 1); ++t) {
    Vec even_of[M], odd_of[M];
    for (int m = 0; m < M; ++m) even_of[m] = even_sum[m * W + t], odd_of[m] = odd_sum[m * W + t];
    finish_rows<M>(task.a, task.row, task.tile + t, even_of, odd_of);
  }
}

template <int M>
void dot_rows(const DotTask& task, int64_t rows, bool wide) {
  if constexpr (M > 1)
    if (rows != M) return dot_rows<M - 1>(task, rows, wide);
  if constexpr (M <= kPanel)
    if (wide) return dot_tile<M, kTiles>(task);
  dot_tile<M, 1>(task);
}
#endif

template <int M>
void linear_rows(const LinearArgs& a, int64_t row, int64_t rows, int64_t tile, const Ahead& ahead, int64_t step) {
  if constexpr (M > 1)
    if (rows != M) return linear_rows<M - 1>(a, row, rows, tile, ahead, step);
  if (is_fp8(a.weight.format)) return fp8_rows<M>(a, row, tile);
  if (a.weight.format != Format::dense) return quant_rows_float<M>(a, row, tile);
  switch (a.weight.dtype) {
    case Dtype::bf16:
      return linear_tile<M, Dtype::bf16>(a, row, tile, ahead, step);
    case Dtype::f16:
      return linear_tile<M, Dtype::f16>(a, row, tile, ahead, step);
    case Dtype::f32:
      return linear_tile<M, Dtype::f32>(a, row, tile, ahead, step);
  }
}

#if OCTAVO_BF16_DOT
constexpr int64_t kWaiting = 2 * kMiddling;  // rows that wait for memory whatever is computed: a tile at a time
constexpr int64_t kDotSpanBytes = 320 << 10;

// As dense_linear. Panels that are too tall for two tiles side by side go in two parts.
void dot_linear(const LinearArgs& a, int64_t tile_begin, int64_t tile_end, const void* next) {
  const Panels panels = dense_panels(a.n);
  const bool wide = a.n > kWaiting;
  const int64_t pairs = (a.weight.cols + 1) / 2, tall = panels.rows(0), parts = wide ? (tall + kPanel - 1) / kPanel : 1;
  const int64_t width = wide ? kTiles : 1, tile_bytes = static_cast<int64_t>(a.weight.tile_bytes());
  const int64_t span = std::max<int64_t>(1, kDotSpanBytes / (4 * pairs * tall));
  for (int64_t begin = 0; begin < panels.count; begin += span) {
    const int64_t end = std::min(panels.count, begin + span), all = (end - begin) * parts;
    const int64_t step = 128 * width / all;
    for (int64_t tile = tile_begin; tile < tile_end; tile += width) {
      const char* data = static_cast<const char*>(a.weight.data) + tile * tile_bytes;
      const char* later = tile + width < tile_end ? data + width * tile_bytes : static_cast<const char*>(next);
      for (int64_t i = begin * parts; i < end * parts; ++i) {
        const int64_t panel = i / parts, height = panels.rows(panel), first = panels.first(panel);
        const int64_t from = height * (i % parts) / parts, to = height * (i % parts + 1) / parts;
        const Ahead ahead = all > 1 ? Ahead::far(later + width * tile_bytes * (i - begin * parts) / all)
                                    : Ahead::near(data + kAhead, data + tile_bytes, later);
        const DotTask task{a,
                           data,
                           a.x_bf16 + 2 * (first * pairs + from),
                           first + from,
                           height,
                           tile,
                           tile + 1 < tile_end ? static_cast<size_t>(tile_bytes) : 0,
                           ahead,
                           static_cast<int>((step + 63) / 64),
                           step};
        dot_rows<kMiddling>(task, to - from, wide);
      }
    }
  }
}
#endif

// Panels go in spans whose inputs stay in the second cache beside a tile, which is thus read from memory once.
void dense_linear(const LinearArgs& a, int64_t tile_begin, int64_t tile_end, const void* next) {
  const Panels panels = dense_panels(a.n);
  const auto tile_bytes = static_cast<int64_t>(a.weight.tile_bytes());
  const int64_t span = std::max<int64_t>(1, kSpanBytes / (a.weight.cols * (a.x_bf16 ? 2 : 4) * panels.rows(0)));
  for (int64_t begin = 0; begin < panels.count; begin += span) {
    const int64_t end = std::min(panels.count, begin + span), all = end - begin, step = 128 / all;
    for (int64_t tile = tile_begin; tile < tile_end; ++tile) {
      const char* data = static_cast<const char*>(a.weight.data) + tile * tile_bytes;
      const char* later = tile + 1 < tile_end ? data + tile_bytes : static_cast<const char*>(next);
      for (int64_t i = begin; i < end; ++i) {
        const Ahead ahead = all == 1 ? Ahead::near(data + kAhead, data + tile_bytes, later)
                                     : Ahead::far(later + (i - begin) * tile_bytes / all);
        linear_rows<kRows>(a, panels.first(i), panels.rows(i), tile, ahead, step);
      }
    }
  }
}

void linear(const LinearArgs& a, int64_t tile_begin, int64_t tile_end, const void* next) {
  if (a.x_int8.codes) quant_linear(a, tile_begin, tile_end, next);
#if OCTAVO_BF16_DOT
  else if (a.x_bf16 && a.weight.format == Format::dense) dot_linear(a, tile_begin, tile_end, next);
#endif
  else dense_linear(a, tile_begin, tile_end, next);
  if (a.past_cache) end_stream();
}

void matrix_row(const PackedMatrix& w, int64_t row, float* out) {
  const char* tile = static_cast<const char*>(w.data) + row / kTile * w.tile_bytes();
  const int64_t lane = row % kTile;
  if (w.format != Format::dense) return quant_matrix_row(w, reinterpret_cast<const uint8_t*>(tile), lane, out);
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
