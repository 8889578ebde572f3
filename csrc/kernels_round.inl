// Rounding weights while they are packed: part of kernels.inl.

constexpr int kCandidates = 19;  // scales tried in each group of a 4-bit rounding
constexpr int kCandidates8 = 5;  // and of an 8-bit one

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
