// Products with 8-bit floats: part of kernels.inl.

// Products with 8-bit floats: two chains a group, over even and odd columns, as a float32 matrix has them.
template <int M, Format F>
void fp8_tile(const LinearArgs& a, int64_t row, int64_t tile) {
  const PackedMatrix& w = a.weight;
  const uint8_t* data = static_cast<const uint8_t*>(w.data) + static_cast<size_t>(tile) * w.tile_bytes();
  const float* x = a.x + row * a.x_stride;
  Vec y[M];
  for (int m = 0; m < M; ++m) y[m] = zero();
  each_group(w, data, [&](const uint8_t* header, int g, int64_t b, int64_t end, const uint8_t* p) {
    Vec even_sum[M], odd_sum[M];
    for (int m = 0; m < M; ++m) even_sum[m] = odd_sum[m] = zero();
    const int64_t last = std::min(end * kBlock, w.cols);
    for (int64_t k = b * kBlock; k < last; k += 2, p += 32) {
      __builtin_prefetch(p + kAheadBlocks * 256);
      const Vec first = load_fp8<F>(p);
      for (int m = 0; m < M; ++m) even_sum[m] = fma(first, set1(x[m * a.x_stride + k]), even_sum[m]);
      if (k + 1 == last) break;
      const Vec second = load_fp8<F>(p + 16);
      for (int m = 0; m < M; ++m) odd_sum[m] = fma(second, set1(x[m * a.x_stride + k + 1]), odd_sum[m]);
    }
    const Vec scale = group_head(w, header, g).scale;
    for (int m = 0; m < M; ++m) y[m] = fma(even_sum[m] + odd_sum[m], scale, y[m]);
  });
  finish_quant<M, 1>(a, row, tile, y);
}

#if OCTAVO_FP8_DOT
// The same over pairs of bf16, each code looked up.
template <int M>
void fp8_tile_dot(const LinearArgs& a, int64_t row, int64_t tile) {
  const PackedMatrix& w = a.weight;
  const uint8_t* data = static_cast<const uint8_t*>(w.data) + static_cast<size_t>(tile) * w.tile_bytes();
  const int64_t pairs = (w.cols + 1) / 2;
  const uint16_t* x = a.x_bf16 + row * pairs * 2;
  static const ByteTable tables[2] = {fp8_table(true), fp8_table(false)};
  const ByteTable table = tables[w.format == Format::e5m2];
  const __m512i places = fp8_places();
  Vec y[M];
  for (int m = 0; m < M; ++m) y[m] = zero();
  each_group(w, data, [&](const uint8_t* header, int g, int64_t b, int64_t end, const uint8_t* p) {
    Vec even_sum[M], odd_sum[M];
    for (int m = 0; m < M; ++m) even_sum[m] = odd_sum[m] = zero();
    const int64_t last = std::min(end * kBlock / 2, pairs);
    for (int64_t i = b * kBlock / 2; i < last; i += 2, p += 64) {
      __builtin_prefetch(p + kAheadBlocks * 256);
      __m512bh first, second;
      fp8_pairs(p, table, places, &first, &second);
      const uint16_t* columns = x + i * 2 * M;
      for (int m = 0; m < M; ++m) even_sum[m] = dot_pairs(even_sum[m], first, columns + 2 * m);
      if (i + 1 == last) break;
      for (int m = 0; m < M; ++m) odd_sum[m] = dot_pairs(odd_sum[m], second, columns + 2 * (M + m));
    }
    const Vec scale = group_head(w, header, g).scale;
    for (int m = 0; m < M; ++m) y[m] = fma(even_sum[m] + odd_sum[m], scale, y[m]);
  });
  finish_quant<M, 1>(a, row, tile, y);
}
#endif

template <int M>
void fp8_rows(const LinearArgs& a, int64_t row, int64_t tile) {
#if OCTAVO_FP8_DOT
  if (a.x_bf16) return fp8_tile_dot<M>(a, row, tile);
#endif
  if (a.weight.format == Format::e4m3) fp8_tile<M, Format::e4m3>(a, row, tile);
  else fp8_tile<M, Format::e5m2>(a, row, tile);
}
