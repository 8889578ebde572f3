// Quantized weights: part of kernels.inl.
//
// y[row] = factor * sum over runs of blocks of 32 columns of scale * (activation scale * whole sum) + offsets. The
// whole sums are exact and runs are added in their order, whatever the number of rows.

constexpr int kAhead = 12 * 64;            // bytes of prefetch distance on a dense weight stream
constexpr int64_t kSpanBytes = 192 << 10;  // of inputs that are kept in the second cache

// The lines that are fetched next: just before they are read into the first cache, up to the end of a tile and then
// from `then` on; or far ahead into the second one.
struct Ahead {
  static Ahead near(const char* from, const char* end, const char* then) { return {from, end, then}; }
  static Ahead far(const char* from) { return {from, from + kEndless, from}; }
  template <bool Near>
  inline void fetch(int lines, int64_t step) {
    if (Near && p >= end) {
      p = then + (p - end);
      end = p + kEndless;
    }
    for (int i = 0; i < lines; ++i) __builtin_prefetch(p + 64 * i, 0, Near ? 3 : 2);
    p += step;
  }
  static constexpr int64_t kEndless = int64_t{1} << 40;
  const char *p, *end, *then;
};

// How the rows of a step stand in panels: of at most `most`, as evenly as can be, the taller ones first.
struct Panels {
  Panels(int64_t n, int64_t most) : count((n + most - 1) / most), low(n / count), tall(n % count) {}
  int64_t first(int64_t i) const { return i * low + std::min(i, tall); }
  int64_t rows(int64_t i) const { return low + (i < tall); }
  int64_t of(int64_t row) const {
    const int64_t turn = tall * (low + 1);
    return row < turn ? row / (low + 1) : tall + (row - turn) / low;
  }
  int64_t count, low, tall;
};

// Results of M rows of a tile: every `Step`th vector of `sums`.
template <int M, int Step>
OCTAVO_INLINE void finish_quant(const LinearArgs& a, int64_t row, int64_t tile, const Vec* sums) {
  const int64_t first = tile * kTile;
  const int n = static_cast<int>(std::min<int64_t>(kTile, a.weight.rows - first));
  const Vec bias = a.bias ? load(a.bias + first, n) : zero(), factor = set1(a.weight.factor);
  const bool zeros = a.weight.sums && a.x_int8.codes;
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m) {
    Vec y = sums[m * Step];
    if (zeros) y = fma(set1(-a.x_int8.zeros[row + m]), load(a.weight.sums + first), y);
    if (a.weight.factor != 1.0f) y = y * factor;
    put_tile(a, row + m, first, n, a.bias ? y + bias : y);
  }
}

// Zeros that stay in registers: written in a loop that is not unrolled, all sums would live in memory.
template <int N>
OCTAVO_INLINE void clear(Vec* sums) {
#pragma GCC unroll 16
  for (int i = 0; i < N; ++i) sums[i] = zero();
}

// A register tile: M rows from `row` (a panel) by W tiles of weights `stride` bytes apart (the last one alone: 0).
struct QuantTask {
  const LinearArgs& a;
  const uint8_t* data;  // of the first tile
  int64_t row, tile;
  size_t stride;
  Ahead ahead;            // what is fetched meanwhile, `lines` lines a block
  int lines, head_lines;  // and these many a header
  bool plain;             // by quant_tile_plain
};

template <int M, int W>
OCTAVO_INLINE void finish_tiles(const QuantTask& task, const Vec* y) {
  finish_quant<M, W>(task.a, task.row, task.tile, y);
  if constexpr (W > 1) finish_quant<M, W>(task.a, task.row, task.tile + (task.stride ? 1 : 0), y + 1);
}

// The whole sums of the `n` blocks from `p` on for M rows and W tiles, as float32: one scale of the inputs holds in
// all of them. Entries of two digits give two whole sums. `fetch` is called once a block.
template <int M, int W, Format F, class Fetch>
inline void run_sums(const QuantizedRows& x, int64_t at, int64_t n, const uint8_t* p, size_t stride,
                     const Bytes* tables, Vec* sums, Fetch fetch) {
  constexpr Dot kind = F == Format::int8_full ? Dot::full : is_table(F) || bits_of(F) == 8 ? Dot::wide : Dot::plain;
  constexpr bool two = F == Format::lut4_wide;
  const int8_t* codes = x.codes + at * block_of(F);
  const int32_t* biases = x.biases + at;
  Ints s[M * W], high[two ? M * W : 1];
  for (int i = 0; i < M * W; ++i) s[i] = ints(biases[i / W]);
  if constexpr (two)
    for (int i = 0; i < M * W; ++i) high[i] = s[i];
  for (;;) {
    fetch();
    each_quad<W, F>(p, stride, [&](int q, const Bytes* c) {
      Bytes numbers[W], highs[two ? W : 1];
      for (int t = 0; t < W; ++t) {
        numbers[t] = is_table(F) ? lookup(tables[0], c[t]) : c[t];
        if constexpr (two) highs[t] = lookup(tables[1], c[t]);
      }
      for (int i = 0; i < M * W; ++i) {
        const int8_t* four = codes + (q * M + i / W) * 4;
        s[i] = product<kind, (W > 1 || two)>(s[i], numbers[i % W], four);
        if constexpr (two) high[i] = product<kind, true>(high[i], highs[i % W], four);
      }
    });
    if (--n == 0) break;
    codes += M * block_of(F);
    p += block_bytes_of(F);
  }
  for (int i = 0; i < M * W; ++i) {
    sums[i] = to_float(s[i]);
    if constexpr (two) sums[i] = fma(to_float(high[i]), set1(256.0f), sums[i]);
  }
}

// The formats whose groups are mostly one block: every block is added under its scale at once.
template <Format F>
constexpr bool kSmallGroups = F == Format::int5 || F == Format::int6 || block_of(F) == 16;

// The formats in which a run of blocks may share the scale of the inputs: PackedMatrix::run().
template <Format F>
constexpr bool kRuns = F == Format::int8 || F == Format::int8_full;

// Short: a group is one block; nothing is summed up under a scale.
template <int M, int W, Format F, bool Short>
__attribute__((noinline)) void quant_tile(const QuantTask& task) {
  constexpr auto block_bytes = static_cast<int>(block_bytes_of(F));
  constexpr bool at_once = Short || kSmallGroups<F>, two = F == Format::lut4_wide;
  const PackedMatrix& w = task.a.weight;
  const QuantizedRows x = task.a.x_int8;
  const int64_t first = task.row * x.blocks;
  const size_t stride = task.stride;
  Ahead ahead = task.ahead;
  const int lines = M <= 2 ? block_bytes / 64 : task.lines, head_lines = task.head_lines;
  const bool offset = w.offset != Offset::none;
  const float* totals = x.sums + first;
  Bytes tables[2] = {};
  if constexpr (is_table(F)) tables[0] = repeat16(two ? w.table->low : w.table->one);
  if constexpr (two) tables[1] = repeat16(w.table->high);
  Vec y[M * W];
  clear<M * W>(y);
  each_group(w, task.data, [&](const uint8_t* header, int g, int64_t b, int64_t end, const uint8_t* p) {
    if (g == 0) ahead.fetch<W == 1>(head_lines, 64 * head_lines);
    GroupHead heads[W];
    const auto read_heads = [&] {
      for (int t = 0; t < W; ++t) {
        heads[t] = group_head(w, header + stride * t, g);
        if constexpr (two) heads[t].scale = heads[t].scale * set1(256.0f);
      }
    };
    if constexpr (at_once && !Short) read_heads();
    constexpr int under = at_once ? 1 : M * W;
    Vec group[under];
    clear<under>(group);
    do {
      const int64_t at = first + b * M, n = kRuns<F> && !Short ? std::min(end - b, w.run()) : 1;
      Vec sums[M * W];
      run_sums<M, W, F>(x, at, n, p, stride, tables, sums, [&] { ahead.fetch<W == 1>(lines, 64 * lines); });
      if constexpr (Short) read_heads();
      for (int i = 0; i < M * W; ++i) {
        const Vec scale = set1(x.scales[at + i / W]);
        if constexpr (at_once) y[i] = fma(sums[i] * scale, heads[i % W].scale, y[i]);
        else group[i] = fma(sums[i], scale, group[i]);
      }
      p += n * block_bytes;
      b += n;
    } while (!Short && b < end);
    if constexpr (!at_once) {
      read_heads();
      for (int i = 0; i < M * W; ++i) y[i] = fma(group[i], heads[i % W].scale, y[i]);
    }
    if (!offset) return;
    for (int i = 0; i < M * W; ++i) y[i] = fma(heads[i % W].offset, set1(totals[i / W]), y[i]);
    totals += M;
  });
  finish_tiles<M, W>(task, y);
}

// The same where a group is one run of blocks (PackedMatrix::plain()): nothing is looked up on the way.
template <int M, int W, Format F, int Run>
__attribute__((noinline)) void quant_tile_plain(const QuantTask& task) {
  constexpr auto block_bytes = static_cast<int>(block_bytes_of(F));
  const PackedMatrix& w = task.a.weight;
  const QuantizedRows x = task.a.x_int8;
  const size_t stride = task.stride;
  const uint8_t* p = task.data;
  Ahead ahead = task.ahead;
  const int lines = M <= 2 ? block_bytes / 64 : task.lines, head_lines = task.head_lines;
  const bool halves = w.dtype == Dtype::f16;
  Bytes tables[1] = {};
  if constexpr (is_table(F)) tables[0] = repeat16(w.table->one);
  Vec y[M * W];
  clear<M * W>(y);
  int64_t at = task.row * x.blocks;
  for (int64_t left = x.blocks; left > 0;) {
    const uint8_t* header = p;
    p += 64;
    ahead.fetch<W == 1>(head_lines, 64 * head_lines);
    for (int g = 0; g < 2 && left > 0; ++g, header += 32) {
      const int64_t n = Run == 1 ? 1 : std::min<int64_t>(Run, left);
      Vec sums[M * W];
      run_sums<M, W, F>(x, at, n, p, stride, tables, sums, [&] { ahead.fetch<W == 1>(lines, 64 * lines); });
      for (int t = 0; t < W; ++t) {
        const auto* scales = reinterpret_cast<const uint16_t*>(header + stride * t);
        const Vec scale = halves ? load_f16(scales) : load_bf16(scales);
        for (int m = 0; m < M; ++m) y[m * W + t] = fma(sums[m * W + t] * set1(x.scales[at + m]), scale, y[m * W + t]);
      }
      p += n * block_bytes;
      at += n * M;
      left -= n;
    }
  }
  finish_tiles<M, W>(task, y);
}

// The codes of one column as the float32 numbers they stand for, before scale and offset.
template <Format F>
inline Vec widen(const PackedMatrix& w, Bytes c, int i, Vec bias) {
  if constexpr (is_table(F)) return lookup(w.table->values, column(c, i));
  else return to_float(column(c, i)) - bias;
}

// The same product with float32 activations.
template <int M, Format F>
void quant_tile_float(const LinearArgs& a, int64_t row, int64_t tile) {
  const PackedMatrix& w = a.weight;
  const uint8_t* data = static_cast<const uint8_t*>(w.data) + static_cast<size_t>(tile) * w.tile_bytes();
  const float* x = a.x + row * a.x_stride;
  constexpr int block = block_of(F);
  const Vec bias = set1(static_cast<float>(middle(w)));
  const bool offset = w.offset != Offset::none;
  Vec y[M];
  for (int m = 0; m < M; ++m) y[m] = zero();
  each_block(w, data, [&](const GroupHead& head, int64_t b, const uint8_t* p) {
    for (int line = 0; line < static_cast<int>(w.block_bytes()); line += 64)
      __builtin_prefetch(p + kAheadBlocks * w.block_bytes() + line);
    Vec s[M];
    for (int m = 0; m < M; ++m) s[m] = zero();
    const int64_t left = w.cols - b * block;
    each_quad<1, F>(p, 0, [&](int q, const Bytes* c) {
      for (int i = 0; i < 4; ++i) {
        const int k = 4 * q + i;
        if (k >= left) break;
        const Vec number = widen<F>(w, *c, i, bias);
        for (int m = 0; m < M; ++m) s[m] = fma(number, set1(x[m * a.x_stride + b * block + k]), s[m]);
      }
    });
    for (int m = 0; m < M; ++m) y[m] = fma(s[m], head.scale, y[m]);
    if (offset) {
      for (int m = 0; m < M; ++m) {
        float total = 0;
        for (int k = 0; k < std::min<int64_t>(block, left); ++k) total += x[m * a.x_stride + b * block + k];
        y[m] = fma(head.offset, set1(total), y[m]);
      }
    }
  });
  finish_quant<M, 1>(a, row, tile, y);
}

// The formats that have a kernel of their own for groups of one block.
template <Format F>
constexpr bool kShort = F == Format::int8 || F == Format::int4 || F == Format::lut4;

template <int M, Format F>
void quant_step_float(const LinearArgs& a, int64_t row, int64_t tile) {
  constexpr int step = M < 4 ? M : 4;
  for (int m = 0; m + step <= M; m += step) quant_tile_float<step, F>(a, row + m, tile);
  for (int m = M - M % step; m < M; ++m) quant_tile_float<1, F>(a, row + m, tile);
}

template <int M>
void quant_rows_float(const LinearArgs& a, int64_t row, int64_t tile) {
  switch (a.weight.format) {
    case Format::int8:
      return quant_step_float<M, Format::int8>(a, row, tile);
    case Format::int4:
      return quant_step_float<M, Format::int4>(a, row, tile);
    case Format::lut4:
      return quant_step_float<M, Format::lut4>(a, row, tile);
    case Format::int5:
      return quant_step_float<M, Format::int5>(a, row, tile);
    case Format::int6:
      return quant_step_float<M, Format::int6>(a, row, tile);
    case Format::lut4_wide:
      return quant_step_float<M, Format::lut4_wide>(a, row, tile);
    case Format::int8_16:
      return quant_step_float<M, Format::int8_16>(a, row, tile);
    case Format::int4_16:
      return quant_step_float<M, Format::int4_16>(a, row, tile);
    case Format::lut4_16:
      return quant_step_float<M, Format::lut4_16>(a, row, tile);
    default:
      return quant_step_float<M, Format::int6_16>(a, row, tile);
  }
}

// Tiles side by side for a number of rows: one or two rows wait for memory, which one stream of weights keeps busiest,
// and there are not the registers for two tiles of two sums each.
constexpr int width_of(int64_t rows, Format f) { return rows > 2 && f != Format::lut4_wide ? kTiles : 1; }

template <int M, Format F>
void quant_format(const QuantTask& task) {
  constexpr int W = width_of(M, F);
  if constexpr (F == Format::int8 && !kFullRange)
    if (task.a.weight.inputs != Inputs::block) return quant_tile<M, W, Format::int8_full, false>(task);
  if constexpr (kShort<F>) {
    if (task.plain && task.a.weight.run() == 1) return quant_tile_plain<M, W, F, 1>(task);
    if constexpr (kRuns<F>)
      if (task.plain) return quant_tile_plain<M, W, F, 4>(task);
    if (task.a.weight.group == block_of(F)) return quant_tile<M, W, F, true>(task);
  }
  quant_tile<M, W, F, false>(task);
}

template <int M>
void quant_rows(const QuantTask& task, int64_t rows) {
  if constexpr (M > 1)
    if (rows != M) return quant_rows<M - 1>(task, rows);
  switch (task.a.weight.format) {
    case Format::int8:
      return quant_format<M, Format::int8>(task);
    case Format::int4:
      return quant_format<M, Format::int4>(task);
    case Format::lut4:
      return quant_format<M, Format::lut4>(task);
    case Format::int5:
      return quant_format<M, Format::int5>(task);
    case Format::int6:
      return quant_format<M, Format::int6>(task);
    case Format::lut4_wide:
      return quant_format<M, Format::lut4_wide>(task);
    case Format::int8_16:
      return quant_format<M, Format::int8_16>(task);
    case Format::int4_16:
      return quant_format<M, Format::int4_16>(task);
    case Format::lut4_16:
      return quant_format<M, Format::lut4_16>(task);
    default:
      return quant_format<M, Format::int6_16>(task);
  }
}

// Panels go in spans whose inputs stay in the second cache beside the weights, which are thus read from memory once.
// One panel reads its weights some blocks ahead of it; more of them share out the fetching of the next tiles.
void quant_linear(const LinearArgs& a, int64_t tile_begin, int64_t tile_end, const void* next) {
  const Panels panels(a.n, kPanel);
  const int width = width_of(panels.rows(0), a.weight.format);
  const size_t tile_bytes = a.weight.tile_bytes();
  // Eight-bit weights of one panel are waited for, and come no sooner for it.
  const bool plain = a.weight.plain() && (panels.count > 1 || bits_of(a.weight.format) < 8);
  const auto block_lines = static_cast<int64_t>(a.weight.block_bytes() / 64);
  const auto head_lines = static_cast<int64_t>(a.weight.header_bytes() / 64);
  const int64_t span = std::max<int64_t>(1, kSpanBytes / (a.weight.blocks() * a.weight.block() * kPanel));
  for (int64_t begin = 0; begin < panels.count; begin += span) {
    const int64_t end = std::min(panels.count, begin + span), all = end - begin;
    const bool near = all == 1 && width == 1;
    const auto share = [=](int64_t lines) { return static_cast<int>((lines * width + all - 1) / all); };
    for (int64_t tile = tile_begin; tile < tile_end; tile += width) {
      const char* data = static_cast<const char*>(a.weight.data) + static_cast<size_t>(tile) * tile_bytes;
      const char* later =
          tile + width < tile_end ? data + tile_bytes * static_cast<size_t>(width) : static_cast<const char*>(next);
      for (int64_t i = begin; i < end; ++i) {
        const Ahead ahead = near ? Ahead::near(data + kAheadBlocks * block_lines * 64, data + tile_bytes, later)
                                 : Ahead::far(later + static_cast<int64_t>(tile_bytes) * width * (i - begin) / all);
        quant_rows<kPanel>({a, reinterpret_cast<const uint8_t*>(data), panels.first(i), tile,
                            tile + 1 < tile_end ? tile_bytes : 0, ahead, share(block_lines), share(head_lines), plain},
                           panels.rows(i));
      }
    }
  }
}

// The largest and the smallest of a row and of zero.
inline void row_ends(const float* x, int64_t n, float* high, float* low) {
  Vec most = zero(), least = zero();
  each_run(n, [&](int64_t i, int lanes) {
    const Vec v = take(x + i, lanes);
    most = max(most, v);
    least = min(least, v);
  });
  *high = largest(most);
  *low = -largest(zero() - least);
}

inline float largest_size(const float* x, int64_t n) {
  Vec most = zero();
  each_run(n, [&](int64_t i, int lanes) {
    const Vec v = take(x + i, lanes);
    most = max(most, max(v, zero() - v));
  });
  return largest(most);
}

// The scale and the zero of a row whose blocks share them.
inline void row_scale(const float* x, int64_t n, const PackedMatrix& w, float* scale, float* middle) {
  *scale = w.x_scale;
  *middle = w.x_zero;
  if (w.inputs == Inputs::fixed) return;
  float high, low;
  row_ends(x, n, &high, &low);
  *middle = 0;
  if (w.inputs == Inputs::row) {
    *scale = std::max(high, -low) / 127.5f;
  } else {
    *scale = (high - low) / 255.0f;
    if (*scale > 0) *middle = std::max(-128.0f, std::min(127.0f, std::nearbyint(-128.0f - low / *scale)));
  }
}

// Code = x / scale + zero rounded to nearest even, kept within a byte. The scale is a run's largest size / 127
// (code = x * (127 / largest)) or what row_scale() says.
void quantize_row(const float* x, int64_t n, const PackedMatrix& weight, const QuantizedRows& out, int64_t row) {
  const float bias = static_cast<float>(code_bias(weight));
  const int block = weight.block(), quads = block / 4;
  const Panels panels(out.n, kPanel);
  const int64_t panel_index = panels.of(row), first = panels.first(panel_index), rows = panels.rows(panel_index);
  const bool blocks = weight.inputs == Inputs::block;
  float row_unit = 0, row_zero = 0;
  if (!blocks) row_scale(x, n, weight, &row_unit, &row_zero);
  out.zeros[row] = row_unit * row_zero;
  const Vec unit = set1(row_unit > 0 ? row_unit : 1.0f), middle = set1(row_zero);
  const auto code = [&](Vec v) { return max(set1(-128.0f), min(set1(127.0f), round(v / unit + middle))); };
  const int64_t per_group = weight.group / block;
  int64_t in_group = 0;
  float group_sum = 0, *group = out.sums + first * out.blocks + row - first;
  const int64_t run = weight.run();
  for (int64_t b = 0; b < out.blocks; b += run) {
    const int64_t end = std::min(out.blocks, b + run), at = first * out.blocks + b * rows + row - first;
    float scale = row_unit, inverse = 0, total = 0;
    if (blocks) {
      const float most = largest_size(x + b * block, std::min(end * block, n) - b * block);
      inverse = most > 0 ? 127.0f / most : 0.0f;
      scale = most / 127.0f;
    }
    for (int64_t i = b; i < end; ++i) {
      const int left = static_cast<int>(std::min<int64_t>(block, n - i * block));
      const float* p = x + i * block;
      const Vec low = load(p, std::min(left, 16)), high = left > 16 ? load(p + 16, left - 16) : zero();
      const Vec q0 = blocks ? round(low * set1(inverse)) : between(code(low), zero(), 0, left);
      const Vec q1 = blocks ? round(high * set1(inverse)) : between(code(high), zero(), 0, left - 16);
      int8_t codes[kBlock];
      store_int8(codes, q0);
      store_int8(codes + 16, q1);
      int8_t* panel = out.codes + (first * out.blocks + i * rows) * block + (row - first) * 4;
      for (int q = 0; q < quads; ++q) std::memcpy(panel + q * rows * 4, codes + 4 * q, 4);
      total += sum(q0 + q1);
    }
    out.scales[at] = scale;
    group_sum += total * scale;
    in_group += end - b;
    if (in_group == per_group || end == out.blocks) {
      *group = group_sum;
      group += rows;
      group_sum = 0;
      in_group = 0;
    }
    out.biases[at] = std::isfinite(total) ? -static_cast<int32_t>(total * bias) : 0;
  }
}

// One row of the matrix, the table of an embedding.
void quant_matrix_row(const PackedMatrix& w, const uint8_t* tile, int64_t lane, float* out) {
  const float bias = static_cast<float>(middle(w));
  const int block = w.block();
  each_block(w, tile, [&](const GroupHead& head, int64_t b, const uint8_t* p) {
    float scale[16], offset[16], column[16];
    store(scale, head.scale);
    store(offset, head.offset);
    const int64_t n = std::min<int64_t>(block, w.cols - b * block);
    for (int64_t k = 0; k < n; ++k) {
      float number;
      if (is_fp8(w.format)) {
        store(column,
              w.format == Format::e4m3 ? load_fp8<Format::e4m3>(p + 16 * k) : load_fp8<Format::e5m2>(p + 16 * k));
        number = column[lane];
      } else {
        const int code = code_in(w.format, p, lane, k);
        number = is_table(w.format) ? w.table->values[code] : static_cast<float>(code) - bias;
      }
      out[b * block + k] = (number * scale[lane] + offset[lane]) * w.factor;
    }
  });
}
