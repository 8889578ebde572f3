// Weights brought into the form that the kernels read; see PackedMatrix.
#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>

#include "plan.h"

namespace octavo {
namespace {

[[noreturn]] void fail(const std::string& what) { throw std::invalid_argument("octavo weight: " + what); }

// Packs up to sixteen rows of `depth` units (a float, a half, or a pair of bf16) from rows `stride` bytes apart;
// in blocks that stay in the first cache while they are turned round.
template <class Unit>
void pack_rows(const char* source, size_t stride, int64_t lanes, int64_t depth, Unit* out) {
  constexpr int64_t block = 64 / sizeof(Unit);
  for (int64_t k0 = 0; k0 < depth; k0 += block) {
    const int64_t end = std::min(depth, k0 + block);
    for (int64_t lane = 0; lane < lanes; ++lane) {
      const char* row = source + static_cast<size_t>(lane) * stride;
      for (int64_t k = k0; k < end; ++k)
        std::memcpy(out + k * kTile + lane, row + static_cast<size_t>(k) * sizeof(Unit), sizeof(Unit));
    }
  }
}

void pack_tile(const void* source, const PackedMatrix& shape, int64_t tile, void* out) {
  const size_t stride = static_cast<size_t>(shape.cols) * size_of(shape.dtype);
  const char* rows = static_cast<const char*>(source) + static_cast<size_t>(tile * kTile) * stride;
  const int64_t lanes = std::min<int64_t>(kTile, shape.rows - tile * kTile);
  if (shape.dtype == Dtype::f32) return pack_rows(rows, stride, lanes, shape.cols, static_cast<uint32_t*>(out));
  if (shape.dtype == Dtype::f16) return pack_rows(rows, stride, lanes, shape.cols, static_cast<uint16_t*>(out));
  const int64_t pairs = shape.cols / 2;
  pack_rows(rows, stride, lanes, pairs, static_cast<uint32_t*>(out));
  if (shape.cols & 1)  // the odd column meets zero
    for (int64_t lane = 0; lane < lanes; ++lane)
      std::memcpy(static_cast<uint32_t*>(out) + pairs * kTile + lane,
                  rows + static_cast<size_t>(lane) * stride + static_cast<size_t>(pairs) * 4, 2);
}

// Writes sixteen numbers of `dtype`, column `group` of rows tile*16 .. of an array [rows, groups].
void put_scales(const void* source, const QuantSource& s, const PackedMatrix& shape, int64_t tile, int64_t group,
                uint8_t* out) {
  const size_t size = size_of(shape.dtype);
  for (int64_t lane = 0; lane < kTile && tile * kTile + lane < shape.rows; ++lane) {
    const auto at = static_cast<size_t>((tile * kTile + lane) * s.groups + group);
    std::memcpy(out + static_cast<size_t>(lane) * size, static_cast<const uint8_t*>(source) + at * size, size);
  }
}

uint8_t code_at(const QuantSource& s, const PackedMatrix& shape, int64_t row, int64_t k) {
  if (shape.format == Format::int8) {
    if (row >= shape.rows || k >= shape.cols) return 128;
    return static_cast<uint8_t>(s.codes[row * shape.cols + k] + 128);
  }
  if (row >= shape.rows || k >= shape.cols) return 0;
  const uint8_t pair = s.codes[row * ((shape.cols + 1) / 2) + k / 2];
  return k & 1 ? pair >> 4 : pair & 15;
}

void pack_block(const QuantSource& s, const PackedMatrix& shape, int64_t tile, int64_t block, uint8_t* out) {
  const bool wide = shape.format == Format::int8;
  for (int64_t lane = 0; lane < kTile; ++lane) {
    const int64_t row = tile * kTile + lane, first = block * kBlock;
    for (int64_t k = 0; k < (wide ? kBlock : kBlock / 2); ++k) {
      uint8_t byte = code_at(s, shape, row, first + k);
      if (!wide) byte = static_cast<uint8_t>(byte | code_at(s, shape, row, first + 16 + k) << 4);
      out[k / 4 * 64 + lane * 4 + k % 4] = byte;
    }
  }
}

void pack_quant_tile(const QuantSource& s, const PackedMatrix& shape, int64_t tile, uint8_t* p) {
  const int64_t blocks = shape.blocks(), per_group = shape.group / kBlock;
  for (int64_t b = 0; b < blocks;) {
    uint8_t* header = p;
    p += shape.header_bytes();
    for (int g = 0; g < shape.header_groups() && b < blocks; ++g) {
      uint8_t* scales = header + shape.scales_bytes() * static_cast<size_t>(g);
      put_scales(s.scales, s, shape, tile, b / per_group, scales);
      if (s.offsets) put_scales(s.offsets, s, shape, tile, b / per_group, scales + shape.scales_bytes() / 2);
      for (const int64_t end = std::min(blocks, b + per_group); b < end; ++b, p += shape.block_bytes())
        pack_block(s, shape, tile, b, p);
    }
  }
}

}  // namespace

void check_order(const std::vector<int32_t>& order, int64_t cols) {
  if (order.empty()) return;
  const auto named = std::count_if(order.begin(), order.end(), [](int32_t k) { return k >= 0; });
  std::vector<bool> seen(static_cast<size_t>(named));
  for (const int32_t k : order) {
    if (static_cast<int64_t>(order.size()) != cols || k < -1 || k >= named || (k >= 0 && seen[static_cast<size_t>(k)]))
      fail("a column order must name every column once");
    if (k >= 0) seen[static_cast<size_t>(k)] = true;
  }
}

std::shared_ptr<Weight> Weight::room(std::shared_ptr<Arena> arena, const PackedMatrix& shape) {
  if (shape.rows <= 0 || shape.cols <= 0) fail("an empty matrix");
  if (shape.format != Format::dense && (shape.group <= 0 || shape.group % kBlock))
    fail("a group must be a multiple of 32 columns, not " + std::to_string(shape.group));
  auto w = std::make_shared<Weight>();
  w->matrix_ = shape;
  w->bytes_ = shape.tile_bytes() * static_cast<size_t>(shape.tiles());
  w->data_ = arena->take(w->bytes_);
  w->matrix_.data = w->data_;
  w->arena_ = std::move(arena);
  return w;
}

std::shared_ptr<Weight> Weight::matrix(Pool& pool, std::shared_ptr<Arena> arena, const void* source, Dtype dtype,
                                       int64_t rows, int64_t cols) {
  auto w = room(std::move(arena), {nullptr, dtype, rows, cols});
  const PackedMatrix& shape = w->matrix_;
  char* out = static_cast<char*>(w->data_);
  pool.run(static_cast<int>(shape.tiles()), [&](int tile, int) {
    pack_tile(source, shape, tile, out + shape.tile_bytes() * static_cast<size_t>(tile));
  });
  return w;
}

std::shared_ptr<Weight> Weight::quantized(Pool& pool, std::shared_ptr<Arena> arena, const QuantSource& source,
                                          PackedMatrix shape) {
  auto w = room(std::move(arena), shape);
  w->order_ = source.order;
  if (shape.format == Format::lut4) {
    w->table_ = std::make_unique<Table>(source.table);
    w->matrix_.table = w->table_.get();
  }
  auto* out = static_cast<uint8_t*>(w->data_);
  pool.run(static_cast<int>(shape.tiles()), [&](int tile, int) {
    pack_quant_tile(source, w->matrix_, tile, out + shape.tile_bytes() * static_cast<size_t>(tile));
  });
  return w;
}

std::shared_ptr<Weight> Weight::rounded(Pool& pool, std::shared_ptr<Arena> arena, const Kernels* kernels,
                                        const void* source, Dtype dtype, PackedMatrix shape) {
  auto w = room(std::move(arena), shape);
  auto* out = static_cast<uint8_t*>(w->data_);
  pool.run(static_cast<int>(shape.tiles()), [&](int tile, int) {
    kernels->round_tile(source, dtype, w->matrix_, tile, out + shape.tile_bytes() * static_cast<size_t>(tile));
  });
  return w;
}

std::shared_ptr<Weight> Weight::vector(std::shared_ptr<Arena> arena, const float* source, int64_t n) {
  auto w = std::make_shared<Weight>();
  w->matrix_ = {nullptr, Dtype::f32, n, 1};
  w->vector_ = true;
  w->bytes_ = static_cast<size_t>(n) * 4;
  w->data_ = arena->take(w->bytes_ + 64);  // kernels read whole vectors
  w->arena_ = std::move(arena);
  std::memcpy(w->data_, source, w->bytes_);
  return w;
}

}  // namespace octavo
