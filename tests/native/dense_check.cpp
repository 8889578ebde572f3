// Dense matrices: see PackedMatrix for where row r and column c stand.
#include "check.h"

namespace octavo::test {
namespace {

void put(void* data, Dtype dtype, int64_t i, float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  if (dtype == Dtype::f32) static_cast<float*>(data)[i] = x;
  else static_cast<uint16_t*>(data)[i] = static_cast<uint16_t>(bits >> 16);  // f16: any bits do
}

std::vector<char> packed(PackedMatrix& m) {
  std::vector<char> data(m.tile_bytes() * static_cast<size_t>(m.tiles()));
  for (int64_t r = 0; r < m.rows; ++r)
    for (int64_t c = 0; c < m.cols; ++c) {
      const int64_t tile = r / kTile * static_cast<int64_t>(m.tile_bytes() / size_of(m.dtype)), lane = r % kTile;
      const int64_t at = m.dtype == Dtype::bf16 ? (c / 2 * kTile + lane) * 2 + c % 2 : c * kTile + lane;
      put(data.data(), m.dtype, tile + at, noise(1)[0]);
    }
  m.data = data.data();
  return data;
}

// Products with x as a plan asks for them: as it stands, or rounded to bf16 where there are such products.
void product(const Kernels* t, const PackedMatrix& m, const Floats& bias, const Floats& x, int64_t n, bool rounded,
             float* out) {
  Floats inputs = x;
  std::vector<uint16_t> halves(static_cast<size_t>(n * ((m.cols + 1) / 2 * 2)));
  LinearArgs a{};
  a.weight = m;
  a.bias = bias.data();
  a.out = {out, m.rows, m.rows};
  a.n = n;
  a.x = inputs.data();
  a.x_stride = m.cols;
  if (rounded) t->round_bf16_f32(x.data(), inputs.data(), n * m.cols);
  if (rounded && t->bf16_dot && m.dtype == Dtype::bf16) {
    for (int64_t r = 0; r < n; ++r) t->round_bf16(x.data() + r * m.cols, m.cols, halves.data(), n, r);
    a.x = nullptr;
    a.x_bf16 = halves.data();
  }
  t->linear(a, 0, m.tiles(), m.data);
}

}  // namespace

void dense_kernels(const Kernels* k) {
  for (const Dtype dtype : {Dtype::f32, Dtype::f16, Dtype::bf16})
    for (const int64_t rows : {1, 16, 37})
      for (const int64_t cols : {1, 6, 33}) {
        PackedMatrix m{nullptr, dtype, rows, cols};
        const std::vector<char> data = packed(m);
        const std::string size =
            " " + std::to_string(static_cast<int>(dtype)) + " " + std::to_string(rows) + "x" + std::to_string(cols);
        compare(k, "matrix_row" + size, cols, 0,
                [&](const Kernels* t, float* out) { t->matrix_row(m, rows - 1, out); });
        for (const bool rounded : {false, true})
          for (const int64_t n : {1, 5, 29}) {
            const Floats x = noise(n * cols), bias = noise(rows);
            compare(k, (rounded ? "linear rounded" : "linear") + size, n * rows, 1e-5f,
                    [&](const Kernels* t, float* out) { product(t, m, bias, x, n, rounded, out); });
            Floats together(static_cast<size_t>(n * rows)), alone = together;
            product(k, m, bias, x, n, rounded, together.data());
            for (int64_t r = 0; r < n; ++r) {
              const Floats one(x.begin() + r * cols, x.begin() + (r + 1) * cols);
              product(k, m, bias, one, 1, rounded, alone.data() + r * rows);
            }
            check(together == alone, std::string(k->name) + " linear" + size + ": rows together and alone differ");
          }
      }
}

}  // namespace octavo::test
