// Quantized weights: part of kernels.inl.
//
// y[row] = factor * sum over blocks of 32 columns of scale * (activation scale * whole sum) + offsets. The whole
// sums are exact and blocks are added in their order, whatever the number of rows.

constexpr int kAhead = 12 * 64;            // bytes of prefetch distance on a dense weight stream
constexpr int64_t kSpanBytes = 192 << 10;  // of inputs that are kept in the second cache
constexpr int kCandidates = 19;            // scales tried in each group of a 4-bit rounding
constexpr int kCandidates8 = 5;            // and of an 8-bit one

template <int M>
inline void finish_quant(const LinearArgs& a, int64_t row, int64_t tile, const Vec* sums) {
  const int64_t first = tile * kTile;
  const int n = static_cast<int>(std::min<int64_t>(kTile, a.weight.rows - first));
  const Vec bias = a.bias ? load(a.bias + first, n) : zero(), factor = set1(a.weight.factor);
  const bool zeros = a.weight.sums && a.x_int8.codes;
  for (int m = 0; m < M; ++m) {
    Vec y = sums[m];
    if (zeros) y = fma(set1(-a.x_int8.zeros[row + m]), load(a.weight.sums + first), y);
    if (a.weight.factor != 1.0f) y = y * factor;
    store(a.out.row(row + m) + first, a.bias ? y + bias : y, n);
  }
}

// The whole sums of one block for M rows, as float32; codes with more digits than one go once through for each.
template <int M, Format F>
inline void block_sums(const QuantizedRows& x, int64_t at, const uint8_t* p, const Bytes* tables, Vec* sums) {
  constexpr int bytes = static_cast<int>(block_bytes_of(F));
  for (int line = 0; line < bytes; line += 64) __builtin_prefetch(p + kAheadBlocks * bytes + line);
  const int8_t* codes = x.codes + at * block_of(F);
  const int32_t* biases = x.biases + at;
  for (int digit = F == Format::lut4_wide ? 2 : 0; digit >= 0; --digit) {
    Ints s[M];
    for (int m = 0; m < M; ++m) s[m] = ints(biases[m]);
    each_quad<1, F>(p, 0, [&](int q, Bytes* c) {
      if constexpr (is_table(F)) *c = lookup(tables[digit], *c);
      for (int m = 0; m < M; ++m) {
        const int8_t* columns = codes + (q * M + m) * 4;
        if constexpr (F == Format::int8_full) s[m] = dot8_full(s[m], *c, columns);
        else if constexpr (is_table(F) || bits_of(F) == 8) s[m] = dot8(s[m], *c, columns);
        else s[m] = dot4(s[m], *c, columns);
      }
    });
    for (int m = 0; m < M; ++m)
      sums[m] = F == Format::lut4_wide && digit < 2 ? fma(sums[m], set1(256.0f), to_float(s[m])) : to_float(s[m]);
  }
}

// Short: every block has a scale of its own; nothing is summed up under a scale.
template <int M, Format F, bool Short>
void quant_tile(const LinearArgs& a, int64_t row, int64_t tile) {
  const PackedMatrix& w = a.weight;
  const uint8_t* data = static_cast<const uint8_t*>(w.data) + static_cast<size_t>(tile) * w.tile_bytes();
  const QuantizedRows& x = a.x_int8;
  const int64_t first = row * x.blocks;
  Bytes tables[3] = {};
  if constexpr (is_table(F))
    for (int digit = 0; digit < 3; ++digit) tables[digit] = repeat16(w.table->bytes[digit]);
  Vec y[M];
  for (int m = 0; m < M; ++m) y[m] = zero();
  each_group(w, data, [&](const uint8_t* header, int g, int64_t b, int64_t end, const uint8_t* p) {
    Vec group[M], total = zero();  // of the activations: one lane a row, at most sixteen
    for (int m = 0; m < M; ++m) group[m] = zero();
    do {
      const int64_t at = first + b * M;
      Vec sums[M];
      block_sums<M, F>(x, at, p, tables, sums);
      for (int m = 0; m < M; ++m) {
        const Vec scale = set1(x.scales[at + m]);
        group[m] = Short ? sums[m] * scale : fma(sums[m], scale, group[m]);
      }
      if (w.offset != Offset::none) total = total + load(x.sums + at);
      p += block_bytes_of(F);
    } while (!Short && ++b < end);
    const GroupHead head = group_head(w, header, g);
    for (int m = 0; m < M; ++m) y[m] = fma(group[m], head.scale, y[m]);
    if (w.offset == Offset::none) return;
    float totals[kLanes];
    store(totals, total);
    for (int m = 0; m < M; ++m) y[m] = fma(head.offset, set1(totals[m]), y[m]);
  });
  finish_quant<M>(a, row, tile, y);
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
  finish_quant<M>(a, row, tile, y);
}

// The formats that have a kernel of their own for groups of one block.
template <Format F>
constexpr bool kShort = F == Format::int8 || F == Format::int4 || F == Format::lut4;

template <int M, Format F>
void quant_format(const LinearArgs& a, int64_t row, int64_t tile) {
  if (a.x_int8.codes) {
    if constexpr (F == Format::int8 && !kFullRange)
      if (a.weight.inputs != Inputs::block) return quant_tile<M, Format::int8_full, false>(a, row, tile);
    if constexpr (kShort<F>)
      if (a.weight.group == block_of(F)) return quant_tile<M, F, true>(a, row, tile);
    return quant_tile<M, F, false>(a, row, tile);
  }
  constexpr int step = M < 4 ? M : 4;
  for (int m = 0; m + step <= M; m += step) quant_tile_float<step, F>(a, row + m, tile);
  for (int m = M - M % step; m < M; ++m) quant_tile_float<1, F>(a, row + m, tile);
}

template <int M>
void quant_rows(const LinearArgs& a, int64_t row, int64_t tile) {
  switch (a.weight.format) {
    case Format::int8:
      return quant_format<M, Format::int8>(a, row, tile);
    case Format::int4:
      return quant_format<M, Format::int4>(a, row, tile);
    case Format::lut4:
      return quant_format<M, Format::lut4>(a, row, tile);
    case Format::int5:
      return quant_format<M, Format::int5>(a, row, tile);
    case Format::int6:
      return quant_format<M, Format::int6>(a, row, tile);
    case Format::lut4_wide:
      return quant_format<M, Format::lut4_wide>(a, row, tile);
    case Format::int8_16:
      return quant_format<M, Format::int8_16>(a, row, tile);
    case Format::int4_16:
      return quant_format<M, Format::int4_16>(a, row, tile);
    case Format::lut4_16:
      return quant_format<M, Format::lut4_16>(a, row, tile);
    default:
      return quant_format<M, Format::int6_16>(a, row, tile);
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

// Code = x / scale + zero rounded to nearest even, kept within a byte. The scale is a block's largest size / 127
// (code = x * (127 / largest)) or what row_scale() says.
void quantize_row(const float* x, int64_t n, const PackedMatrix& weight, const QuantizedRows& out, int64_t row) {
  const float bias = static_cast<float>(code_bias(weight));
  const int block = weight.block(), quads = block / 4;
  const int64_t first = row / kRows * kRows, rows = std::min<int64_t>(kRows, out.n - first);
  const bool blocks = weight.inputs == Inputs::block;
  float row_unit = 0, row_zero = 0;
  if (!blocks) row_scale(x, n, weight, &row_unit, &row_zero);
  out.zeros[row] = row_unit * row_zero;
  const Vec unit = set1(row_unit > 0 ? row_unit : 1.0f), middle = set1(row_zero);
  const auto code = [&](Vec v) { return max(set1(-128.0f), min(set1(127.0f), round(v / unit + middle))); };
  for (int64_t b = 0; b < out.blocks; ++b) {
    const int left = static_cast<int>(std::min<int64_t>(block, n - b * block));
    const float* p = x + b * block;
    const Vec low = load(p, std::min(left, 16)), high = left > 16 ? load(p + 16, left - 16) : zero();
    Vec q0, q1 = zero();
    float scale = row_unit;
    if (blocks) {
      const float most = largest(max(max(low, zero() - low), max(high, zero() - high)));
      const Vec inverse = set1(most > 0 ? 127.0f / most : 0.0f);
      q0 = round(low * inverse);
      q1 = round(high * inverse);
      scale = most / 127.0f;
    } else {
      q0 = between(code(low), zero(), 0, left);
      q1 = between(code(high), zero(), 0, left - 16);
    }
    int8_t codes[kBlock];
    store_int8(codes, q0);
    store_int8(codes + 16, q1);
    const int64_t at = first * out.blocks + b * rows + row - first;
    int8_t* panel = out.codes + (first * out.blocks + b * rows) * block + (row - first) * 4;
    for (int q = 0; q < quads; ++q) std::memcpy(panel + q * rows * 4, codes + 4 * q, 4);
    const float total = sum(q0 + q1);
    out.scales[at] = scale;
    out.sums[at] = total * scale;
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

// x turned round: columns [0, cols padded to 32), sixteen rows side by side, missing ones zero.
void turn_tile(const void* source, Dtype dtype, const PackedMatrix& shape, int64_t tile, float* out) {
  const int64_t rows = std::min<int64_t>(kTile, shape.rows - tile * kTile), cols = shape.cols;
  std::fill_n(out, shape.blocks() * kBlock * kTile, 0.0f);
  for (int64_t k0 = 0; k0 < cols; k0 += 16) {
    const int n = static_cast<int>(std::min<int64_t>(16, cols - k0));
    for (int64_t lane = 0; lane < rows; ++lane) {
      const int64_t at = (tile * kTile + lane) * cols + k0;
      float values[16];
      uint16_t halves[16] = {};
      if (dtype == Dtype::f32) {
        store(values, load(static_cast<const float*>(source) + at, n));
      } else {
        std::memcpy(halves, static_cast<const uint16_t*>(source) + at, sizeof(uint16_t) * static_cast<size_t>(n));
        store(values, dtype == Dtype::f16 ? load_f16(halves) : load_bf16(halves));
      }
      for (int i = 0; i < n; ++i) out[(k0 + i) * kTile + lane] = values[i];
    }
  }
}

// The scale of each lane's group x [n, 16] that leaves the least squared error, among `tries` grids around the one
// whose end is the largest number; for each the best scale by least squares is (sum x q) / (sum q q), and what it
// explains of sum x x is (sum x q)^2 / (sum q q).
Vec best_scale(const float* x, int64_t n, float low, float high, int tries, float step) {
  Vec most = zero(), least = zero();
  for (int64_t k = 0; k < n; ++k) {
    most = max(most, load(x + k * kTile));
    least = min(least, load(x + k * kTile));
  }
  // The number of largest size meets the longer end of the grid, the negative one: scales may be negative.
  const Vec far = choose(most, zero() - least, most, least);
  const Vec end = choose(max(far, zero() - far), zero(), far, set1(1.0f));
  Vec best = zero(), best_gain = zero();
  for (int t = 0; t < tries; ++t) {
    const Vec inverse = set1(low + step * static_cast<float>(t - tries / 2)) / end;
    Vec xq = zero(), qq = zero();
    for (int64_t k = 0; k < n; ++k) {
      const Vec v = load(x + k * kTile), q = max(set1(low), min(set1(high), round(v * inverse)));
      xq = fma(v, q, xq);
      qq = fma(q, q, qq);
    }
    const Vec some = max(qq, set1(1.0f)), gain = xq * xq / some;
    best = choose(gain, best_gain, xq / some, best);
    best_gain = max(gain, best_gain);
  }
  return best;
}

void round_tile(const void* source, Dtype dtype, const PackedMatrix& shape, int64_t tile, void* out) {
  static thread_local std::vector<float> turned;
  turned.resize(static_cast<size_t>(shape.blocks() * kBlock * kTile));
  float* x = turned.data();
  turn_tile(source, dtype, shape, tile, x);
  const bool wide = shape.format == Format::int8;
  const float low = wide ? -127.0f : -8.0f, high = wide ? 127.0f : 7.0f;
  const int64_t per_group = shape.group / kBlock, blocks = shape.blocks();
  auto* p = static_cast<uint8_t*>(out);
  for (int64_t b = 0; b < blocks;) {
    uint8_t* header = p;
    p += shape.header_bytes();
    for (int g = 0; g < shape.header_groups() && b < blocks; ++g) {
      const int64_t end = std::min(blocks, b + per_group);
      const Vec exact = best_scale(x + b * kBlock * kTile, (end - b) * kBlock, low, high,
                                   wide ? kCandidates8 : kCandidates, wide ? 0.5f : 0.1f);
      auto* stored = reinterpret_cast<uint16_t*>(header + shape.scales_bytes() * static_cast<size_t>(g));
      store_bf16(stored, exact);
      const Vec scale = load_bf16(stored), size = max(scale, zero() - scale);
      const Vec inverse = choose(size, zero(), set1(1.0f) / choose(size, zero(), scale, set1(1.0f)), zero());
      const auto code = [&](int64_t block, int k) {
        const Vec v = load(x + (block * kBlock + k) * kTile);
        return max(set1(low), min(set1(high), round(v * inverse))) + set1(wide ? 128.0f : 8.0f);
      };
      const auto both = [&](int64_t block, int k) { return fma(code(block, k + 16), set1(16.0f), code(block, k)); };
      for (; b < end; ++b, p += shape.block_bytes()) {
        for (int q = 0; q < (wide ? kBlock / 4 : kBlock / 8); ++q) {
          const int k = 4 * q;
          if (wide) store_bytes(p + 64 * q, join(code(b, k), code(b, k + 1), code(b, k + 2), code(b, k + 3)));
          else store_bytes(p + 64 * q, join(both(b, k), both(b, k + 1), both(b, k + 2), both(b, k + 3)));
        }
      }
    }
  }
}
