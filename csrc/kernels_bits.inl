// How the numbers of each format stand in a tile: part of kernels.inl. See PackedMatrix.

constexpr int kAheadBlocks = 12;  // how far codes are fetched ahead

inline Vec load_scales(const uint8_t* p, Dtype dtype) {
  switch (dtype) {
    case Dtype::f32:
      return load(reinterpret_cast<const float*>(p));
    case Dtype::f16:
      return load_f16(reinterpret_cast<const uint16_t*>(p));
    default:
      return load_bf16(reinterpret_cast<const uint16_t*>(p));
  }
}

// What stands before a group: scales, and what is added for each activation.
struct GroupHead {
  Vec scale, offset;
};

inline GroupHead group_head(const PackedMatrix& w, const uint8_t* header, int group) {
  const size_t floats = kTile * size_of(w.dtype);
  if (w.per > 0) {  // units, then a byte for each group
    const bool minimum = w.offset != Offset::none;
    const auto* sub = reinterpret_cast<const int8_t*>(header + w.scales_bytes()) + kTile * (minimum ? 2 : 1) * group;
    GroupHead head{load_scales(header, w.dtype) * load_int8(sub), zero()};
    if (minimum) head.offset = load_scales(header + floats, w.dtype) * load_int8(sub + kTile);
    return head;
  }
  const uint8_t* p = header + w.scales_bytes() * static_cast<size_t>(group);
  GroupHead head{load_scales(p, w.dtype), zero()};
  if (w.offset == Offset::none) return head;
  const Vec raw = load_scales(p + floats, w.dtype);
  head.offset = w.offset == Offset::minimum ? raw : zero() - head.scale * raw;
  return head;
}

// Calls f(header, index in the header, first block, end, codes) for every group of a tile in order.
template <class F>
inline void each_group(const PackedMatrix& w, const uint8_t* p, F f) {
  const int64_t blocks = w.blocks(), per_group = w.group / w.block();
  const size_t header_bytes = w.header_bytes(), block_bytes = w.block_bytes();
  const int groups = w.header_groups();
  for (int64_t b = 0; b < blocks;) {
    const uint8_t* header = p;
    p += header_bytes;
    for (int g = 0; g < groups && b < blocks; ++g) {
      const int64_t end = std::min(blocks, b + per_group);
      f(header, g, b, end, p);
      p += static_cast<size_t>(end - b) * block_bytes;
      b = end;
    }
  }
}

// Calls f(head, block, codes) for every block of a tile in order.
template <class F>
inline void each_block(const PackedMatrix& w, const uint8_t* p, F f) {
  each_group(w, p, [&](const uint8_t* header, int g, int64_t b, int64_t end, const uint8_t* codes) {
    const GroupHead head = group_head(w, header, g);
    for (; b < end; ++b, codes += w.block_bytes()) f(head, b, codes);
  });
}

// The code that stands for zero: taken off as a whole number.
inline int32_t middle(const PackedMatrix& w) {
  if (bits_of(w.format) == 8) return 128;
  return is_table(w.format) || w.offset != Offset::none ? 0 : 1 << (bits_of(w.format) - 1);
}
// The same in the sums of products; dot8 may have it off already.
inline int32_t code_bias(const PackedMatrix& w) {
  return bits_of(w.format) == 8 || is_table(w.format) ? kBias8 : middle(w);
}

// Calls f(quad, codes of columns 4*quad .. of each of W tiles `stride` bytes apart) for every quad of a block.
template <int W, Format F, class Do>
inline void each_quad(const uint8_t* p, size_t stride, Do f) {
  constexpr int quads = block_of(F) / 4, bits = bits_of(F);
  if constexpr (bits == 8) {
#pragma GCC unroll 8
    for (int q = 0; q < quads; ++q) {
      Bytes codes[W];
      for (int t = 0; t < W; ++t) codes[t] = load_bytes(p + stride * t + 64 * q);
      f(q, codes);
    }
  } else {
    constexpr int lines = quads / 2;  // of the low four bits; those of the others follow
#pragma GCC unroll 4
    for (int q = 0; q < lines; ++q) {
      Bytes low[W], high[W];
      for (int t = 0; t < W; ++t) {
        const uint8_t* tile = p + stride * t;
        const Bytes both = load_bytes(tile + 64 * q);
        low[t] = low_nibbles(both);
        high[t] = high_nibbles(both);
        if constexpr (bits == 5) {
          const Bytes top = load_bytes(tile + 64 * lines);
          low[t] = with_bit(low[t], top, q);
          high[t] = with_bit(high[t], top, q + lines);
        } else if constexpr (bits == 6) {
          low[t] = with_pair(low[t], load_bytes(tile + 64 * (lines + q / 4)), q % 4);
          high[t] = with_pair(high[t], load_bytes(tile + 64 * (lines + (q + lines) / 4)), (q + lines) % 4);
        }
      }
      f(q, low);
      f(q + lines, high);
    }
  }
}

// One code of a block, as it was packed.
inline int code_in(Format format, const uint8_t* p, int64_t lane, int64_t k) {
  const int64_t half = block_of(format) / 2, within = lane * 4 + k % 4;
  if (bits_of(format) == 8) return p[k / 4 * 64 + within];
  const uint8_t byte = p[k % half / 4 * 64 + within];
  const int low = k < half ? byte & 15 : byte >> 4;
  const uint8_t* top = p + half * 16;
  if (bits_of(format) == 5) return low | (top[within] >> (k / 4) & 1) << 4;
  if (bits_of(format) == 6) return low | (top[k / 16 * 64 + within] >> (k / 4 % 4 * 2) & 3) << 4;
  return low;
}

// Sixteen 8-bit floats.
template <Format F>
inline Vec load_fp8(const uint8_t* p) {
  if constexpr (F == Format::e4m3) return load_e4m3(p) * set1(256.0f);
  else return load_e5m2(p);
}
