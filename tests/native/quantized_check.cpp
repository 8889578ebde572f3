// Quantized matrices of every format: see PackedMatrix for how they stand in memory.
#include "check.h"

namespace octavo::test {
namespace {

uint16_t half_bits(float x, Dtype dtype) {  // of numbers that either form holds exactly
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  if (dtype == Dtype::bf16) return static_cast<uint16_t>(bits >> 16);
  return static_cast<uint16_t>((bits >> 16 & 0x8000u) | ((bits & 0x7fffffffu) - 0x38000000u) >> 13);
}

// Numbers of either sign that every dtype holds exactly.
Floats exact_numbers(int64_t n) {
  Floats out(static_cast<size_t>(n));
  for (float& x : out) x = std::ldexp(static_cast<float>(pick(64, 127) * (pick(0, 1) ? 1 : -1)), pick(-12, -8));
  return out;
}

// Sixteen numbers in `dtype`, one a row.
void put_numbers(uint8_t* p, Dtype dtype, bool plain) {
  for (const float number : exact_numbers(kTile)) {
    const float x = plain ? 1.0f : number;
    const uint16_t half = half_bits(x, dtype);
    std::memcpy(p, dtype == Dtype::f32 ? static_cast<const void*>(&x) : &half, size_of(dtype));
    p += size_of(dtype);
  }
}

// Random codes; `plain` scales and offsets are one, and the codes as large as they come.
std::vector<uint8_t> packed(PackedMatrix& m, bool plain) {
  std::vector<uint8_t> data(m.tile_bytes() * static_cast<size_t>(m.tiles()));
  uint8_t* p = data.data();
  const int mask = is_fp8(m.format) ? 0xbf : 0xff;  // no infinities
  const int64_t per_group = m.group / m.block();
  for (int64_t tile = 0; tile < m.tiles(); ++tile)
    for (int64_t b = 0; b < m.blocks();) {
      for (size_t at = 0; at < m.header_bytes(); at += kTile * size_of(m.dtype)) put_numbers(p + at, m.dtype, plain);
      p += m.header_bytes();
      for (int g = 0; g < m.header_groups(); ++g)
        for (const int64_t end = std::min(m.blocks(), b + per_group); b < end; ++b)
          for (size_t i = 0; i < m.block_bytes(); ++i)
            *p++ = static_cast<uint8_t>((plain && pick(0, 1) ? 0 : pick(0, 255)) & mask);
    }
  m.data = data.data();
  return data;
}

struct Codes {
  std::vector<int8_t> codes;
  Floats scales, sums, zeros;
  std::vector<int32_t> biases;
  QuantizedRows rows;

  Codes(const Kernels* t, const PackedMatrix& m, const Floats& x, int64_t n) {
    const auto all = static_cast<size_t>(n * m.blocks());
    codes.resize(all * static_cast<size_t>(m.block()));
    scales.resize(all);
    sums.resize(all);
    biases.resize(all);
    zeros.resize(static_cast<size_t>(n));
    rows = {codes.data(), scales.data(), sums.data(), biases.data(), zeros.data(), m.blocks(), n};
    for (int64_t r = 0; r < n; ++r) t->quantize_row(x.data() + r * m.cols, m.cols, m, rows, r);
  }
};

// Products with x as int8 (`whole`) or as float32.
void product(const Kernels* t, const PackedMatrix& m, const Floats& x, int64_t n, bool whole, float* out) {
  LinearArgs a{};
  a.weight = m;
  a.out = {out, m.rows, m.rows};
  a.n = n;
  a.x = x.data();
  a.x_stride = m.cols;
  const Codes inputs(t, m, x, whole ? n : 0);
  if (whole) a.x_int8 = inputs.rows;
  t->linear(a, 0, m.tiles(), m.data);
}

Floats alone(const Kernels* t, const PackedMatrix& m, const Floats& x, int64_t n, bool whole) {
  Floats out(static_cast<size_t>(n * m.rows));
  for (int64_t r = 0; r < n; ++r) {
    const Floats one(x.begin() + r * m.cols, x.begin() + (r + 1) * m.cols);
    product(t, m, one, 1, whole, out.data() + r * m.rows);
  }
  return out;
}

// Numbers that int8 holds exactly, with one of the largest size in each block: their scale is one.
Floats whole_numbers(int64_t n, int64_t cols) {
  Floats x(static_cast<size_t>(n * cols));
  for (size_t i = 0; i < x.size(); ++i) {
    const bool largest = static_cast<int64_t>(i) % cols % 16 == 0 || pick(0, 3) == 0;
    x[i] = static_cast<float>(largest ? (pick(0, 1) ? 127 : -127) : pick(-127, 127));
  }
  return x;
}

void look(const Kernels* k, PackedMatrix m, const std::string& what) {
  const bool integer = !is_fp8(m.format);
  const std::vector<uint8_t> plain_data = packed(m, true);
  // Sums of whole numbers are exact, as long as float32 holds them.
  const float exact = m.format == Format::lut4_wide ? 1e-6f : 0;
  for (const int64_t n : {1, 2, 7, 29}) {
    const Floats x = whole_numbers(n, m.cols);
    if (integer)
      compare(k, what + " exact", n * m.rows, exact,
              [&](const Kernels* t, float* out) { product(t, m, x, n, true, out); });
  }
  const std::vector<uint8_t> data = packed(m, false);
  compare(k, what + " matrix_row", m.cols, 1e-6f,
          [&](const Kernels* t, float* out) { t->matrix_row(m, m.rows - 1, out); });
  for (const bool whole : {false, true}) {
    if (whole && !integer) continue;
    for (const int64_t n : {1, 5, 29}) {
      const Floats x = noise(n * m.cols, 3);
      compare(k, what + (whole ? " int8" : " float"), n * m.rows, 1e-5f,
              [&](const Kernels* t, float* out) { product(t, m, x, n, whole, out); });
      Floats together(static_cast<size_t>(n * m.rows));
      product(k, m, x, n, whole, together.data());
      check(together == alone(k, m, x, n, whole),
            std::string(k->name) + " " + what + ": rows together and alone differ");
    }
  }
}

// Inputs with one scale a row, codes of -128 among them, against weights of -128.
void rows_with_scales(const Kernels* k) {
  for (const Inputs inputs : {Inputs::row, Inputs::row_zero, Inputs::fixed})
    for (const bool lowest : {false, true}) {
      PackedMatrix m{nullptr, Dtype::f32, 37, 161, Format::int8, Offset::none, 64};
      m.inputs = inputs;
      m.x_scale = 0.05f;
      m.x_zero = -3;
      const Floats sums = noise(48, 100);
      if (m.has_zero()) m.sums = sums.data();
      std::vector<uint8_t> data = packed(m, lowest);
      const int64_t n = 5;
      Floats x = noise(n * m.cols, 3);
      if (lowest) std::fill(x.begin(), x.end(), -20.0f);
      const std::string what = "int8 inputs " + std::to_string(static_cast<int>(inputs));
      compare(k, what, n * m.rows, 1e-5f, [&](const Kernels* t, float* out) { product(t, m, x, n, true, out); });
      Floats together(static_cast<size_t>(n * m.rows));
      product(k, m, x, n, true, together.data());
      check(together == alone(k, m, x, n, true),
            std::string(k->name) + " " + what + ": rows together and alone differ");
      const Codes a(scalar_kernels(), m, x, 1), b(k, m, x, 1);
      check(a.codes == b.codes && a.scales == b.scales && a.zeros == b.zeros,
            std::string(k->name) + " " + what + ": codes differ");
    }
}

// A row's codes do not depend on the instruction set; neither do those of a row of zeros.
void quantize(const Kernels* k) {
  for (const int64_t cols : {1, 31, 32, 77}) {
    PackedMatrix m{nullptr, Dtype::bf16, 16, cols};
    m.format = Format::int8;
    m.group = 32;
    for (const float size : {0.0f, 1.0f, 1e30f}) {
      const Floats x = noise(cols, size);
      const Codes a(scalar_kernels(), m, x, 1), b(k, m, x, 1);
      check(a.codes == b.codes && a.scales == b.scales && a.sums == b.sums,
            std::string(k->name) + " quantize_row " + std::to_string(cols) + " differs");
    }
  }
}

// The squared error that a table's rounding of `source` (numbers x in `dtype`) leaves.
double rounding_error(const Kernels* t, PackedMatrix m, const std::vector<uint8_t>& source, Dtype dtype,
                      const Floats& x) {
  std::vector<uint8_t> data(m.tile_bytes() * static_cast<size_t>(m.tiles()));
  for (int64_t tile = 0; tile < m.tiles(); ++tile)
    t->round_tile(source.data(), dtype, m, tile, data.data() + m.tile_bytes() * static_cast<size_t>(tile));
  m.data = data.data();
  Floats row(static_cast<size_t>(m.cols));
  double error = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    if (i % row.size() == 0) scalar_kernels()->matrix_row(m, static_cast<int64_t>(i / row.size()), row.data());
    error += std::pow(static_cast<double>(row[i % row.size()] - x[i]), 2);
  }
  return error;
}

// No larger than the scalar kernels' (scales may differ in their last bits).
void rounding(const Kernels* k) {
  for (const Format format : {Format::int8, Format::int4})
    for (const Dtype dtype : {Dtype::f32, Dtype::bf16, Dtype::f16}) {
      const PackedMatrix m{nullptr, Dtype::bf16, 21, 75, format, Offset::none, 64};
      std::vector<uint8_t> source;
      const Floats x = exact_numbers(m.rows * m.cols);
      for (const float number : x) {
        const uint16_t half = half_bits(number, dtype);
        const void* bytes = dtype == Dtype::f32 ? static_cast<const void*>(&number) : &half;
        source.insert(source.end(), static_cast<const uint8_t*>(bytes),
                      static_cast<const uint8_t*>(bytes) + size_of(dtype));
      }
      const double expected = rounding_error(scalar_kernels(), m, source, dtype, x);
      const double got = rounding_error(k, m, source, dtype, x);
      check(got <= 1.001 * expected && got > 0, std::string(k->name) + " round_tile: squared error " +
                                                    std::to_string(got) + " against " + std::to_string(expected));
    }
}

}  // namespace

void quantized_kernels(const Kernels* k) {
  Table bytes{}, wide{};  // as table_of() makes them
  for (int i = 0; i < 16; ++i) {
    const int number = i == 0 ? -128 : i == 15 ? 127 : pick(-128, 127);
    const int high = pick(-127, 127), middle = pick(-128, 127);
    bytes.values[i] = static_cast<float>(number);
    wide.values[i] = static_cast<float>((high * 256 + middle) * 256);
    bytes.one[i] = static_cast<uint8_t>(number + 128);
    wide.low[i] = static_cast<uint8_t>(middle + 128);
    wide.high[i] = static_cast<uint8_t>(high + 128);
  }
  for (int f = 1; f < kFormats; ++f)
    for (const Offset offset : {Offset::none, Offset::zero, Offset::minimum}) {
      const auto format = static_cast<Format>(f);
      if (is_fp8(format) && offset != Offset::none) continue;
      for (const Dtype dtype : {Dtype::f32, Dtype::f16, Dtype::bf16})
        for (const int64_t group : {block_of(format), 64, 128}) {
          const int64_t rows = group == 128 ? 21 : 37, cols = group == 128 ? 161 : group == 64 ? 33 : 65;
          const Table* table = format == Format::lut4_wide ? &wide : is_table(format) ? &bytes : nullptr;
          const PackedMatrix m{nullptr, dtype, rows, cols, format, offset, group, 1.0f, table};
          look(k, m,
               "format " + std::to_string(f) + " offset " + std::to_string(static_cast<int>(offset)) + " group " +
                   std::to_string(group));
        }
    }
  rows_with_scales(k);
  quantize(k);
  rounding(k);
}

}  // namespace octavo::test
