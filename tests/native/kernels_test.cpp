// Compares the kernels of every instruction set that this machine runs with the scalar ones, on odd sizes.
// Built and run by test_kernels.py, and for ARM under an emulator by `make test-arm`. Ends with 1 on a difference.
#include "kernels.h"

#include <cmath>
#include <cstdio>
#include <cstring>
#include <functional>
#include <random>
#include <string>
#include <vector>

namespace octavo {
namespace {

using Floats = std::vector<float>;

int failures = 0, comparisons = 0;
std::mt19937 generator(7);

Floats noise(int64_t n, float size = 1) {
  std::normal_distribution<float> normal(0, size);
  Floats out(static_cast<size_t>(n));
  for (float& x : out) x = normal(generator);
  return out;
}

// `run` writes n floats; the scalar table's are right to `tolerance` of the largest.
void compare(const Kernels* tested, const std::string& what, int64_t n, float tolerance,
             const std::function<void(const Kernels*, float*)>& run) {
  // A margin behind the end shows what was written there.
  Floats expected(static_cast<size_t>(n) + 64, 77.0f), got = expected;
  run(scalar_kernels(), expected.data());
  run(tested, got.data());
  float largest = 1e-6f, worst = 0;
  bool same = true;
  for (size_t i = 0; i < expected.size(); ++i) {
    const bool inside = i < static_cast<size_t>(n);
    if (inside) largest = std::max(largest, std::fabs(expected[i]));
    if (std::isnan(expected[i]) != std::isnan(got[i]) || (!inside && (got[i] != 77.0f || expected[i] != 77.0f)))
      same = false;
    else if (!std::isnan(expected[i])) worst = std::max(worst, std::fabs(expected[i] - got[i]));
  }
  ++comparisons;
  if (same && worst <= tolerance * largest) return;
  ++failures;
  std::printf("%s %s: off by %g of %g%s\n", tested->name, what.c_str(), worst, largest,
              same ? "" : ", or out of place");
}

void rows(const Kernels* k) {
  for (const int64_t n : {1, 7, 16, 17, 48, 93}) {
    const std::string size = " " + std::to_string(n);
    const Floats x = noise(n, 3), y = noise(n), w = noise(n), gate = noise(n, 20);
    compare(k, "rms_norm" + size, n, 1e-6f,
            [&](const Kernels* t, float* out) { t->rms_norm(x.data(), out, w.data(), 0.5f, 1e-5f, n, n); });
    compare(k, "rms_norm plain" + size, n, 1e-6f,
            [&](const Kernels* t, float* out) { t->rms_norm(x.data(), out, nullptr, 0, 1e-5f, n, n); });
    compare(k, "layer_norm" + size, n, 1e-5f,
            [&](const Kernels* t, float* out) { t->layer_norm(x.data(), out, w.data(), y.data(), 1e-5f, n, n); });
    compare(k, "add" + size, n, 0, [&](const Kernels* t, float* out) { t->add(x.data(), y.data(), out, n); });
    compare(k, "mul" + size, n, 0, [&](const Kernels* t, float* out) { t->mul(x.data(), y.data(), out, n); });
    compare(k, "scale" + size, n, 0, [&](const Kernels* t, float* out) { t->scale(x.data(), 1.7f, out, n); });
    compare(k, "softcap" + size, n, 1e-6f, [&](const Kernels* t, float* out) { t->softcap(x.data(), out, 2.5f, n); });
    for (int kind = 0; kind <= static_cast<int>(Activation::quick_gelu); ++kind) {
      const auto a = static_cast<Activation>(kind);
      compare(k, "activation " + std::to_string(kind) + size, n, 1e-6f,
              [&](const Kernels* t, float* out) { t->activation(gate.data(), out, a, n); });
      compare(k, "gated " + std::to_string(kind) + size, n, 1e-6f,
              [&](const Kernels* t, float* out) { t->gated(gate.data(), y.data(), out, a, n); });
    }
    compare(k, "round_bf16_f32" + size, n, 0,
            [&](const Kernels* t, float* out) { t->round_bf16_f32(x.data(), out, n); });
  }
  for (const bool interleaved : {false, true})
    for (const int dim : {10, 64, 80})
      for (const int rotary : {4, 10}) {
        const Floats x = noise(3 * dim), table = noise(rotary);
        compare(k, "rotate " + std::to_string(dim), 3 * dim, 1e-6f, [&](const Kernels* t, float* out) {
          t->rotate(x.data(), out, table.data(), rotary, dim, 3, interleaved);
        });
      }
}

void put(void* data, Dtype dtype, int64_t i, float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  if (dtype == Dtype::f32) static_cast<float*>(data)[i] = x;
  else static_cast<uint16_t*>(data)[i] = static_cast<uint16_t>(bits >> 16);  // f16: any bits do
}

// Dense matrices: see PackedMatrix for where row r and column c stand.
void matrices(const Kernels* k) {
  for (const Dtype dtype : {Dtype::f32, Dtype::f16, Dtype::bf16})
    for (const int64_t rows : {1, 16, 37})
      for (const int64_t cols : {1, 6, 33}) {
        PackedMatrix m{};
        m.dtype = dtype;
        m.rows = rows;
        m.cols = cols;
        std::vector<char> data(m.tile_bytes() * static_cast<size_t>(m.tiles()) + 4096);
        for (int64_t r = 0; r < rows; ++r)
          for (int64_t c = 0; c < cols; ++c) {
            const int64_t tile = r / kTile * static_cast<int64_t>(m.tile_bytes() / size_of(dtype)), lane = r % kTile;
            const int64_t at = dtype == Dtype::bf16 ? (c / 2 * kTile + lane) * 2 + c % 2 : c * kTile + lane;
            put(data.data(), dtype, tile + at, noise(1)[0]);
          }
        m.data = data.data();
        const std::string size =
            " " + std::to_string(static_cast<int>(dtype)) + " " + std::to_string(rows) + "x" + std::to_string(cols);
        compare(k, "matrix_row" + size, cols, 0,
                [&](const Kernels* t, float* out) { t->matrix_row(m, rows - 1, out); });
        for (const int64_t n : {1, 5, 29}) {
          const Floats x = noise(n * cols), bias = noise(rows);
          compare(k, "linear" + size, n * rows, 1e-5f, [&](const Kernels* t, float* out) {
            LinearArgs a{};
            a.weight = m;
            a.bias = bias.data();
            a.out = {out, rows, rows};
            a.n = n;
            a.x = x.data();
            a.x_stride = cols;
            t->linear(a, 0, m.tiles());
          });
        }
      }
}

struct Shape {
  int heads, kv_heads, head_dim, block_size, window;
  float softcap;
  bool biased = false;  // with ALiBi's slopes and sinks
};

// Prompt and one more token through write_kv and attend, whole and in parts that attend_join puts together.
void attend(const Kernels* t, const Shape& s, CacheDtype dtype, bool rounded, bool split, int tokens, const Floats& q,
            const Floats& k, const Floats& v, float* out) {
  const int width = (s.head_dim + 15) / 16 * 16, blocks = (tokens + s.block_size - 1) / s.block_size;
  CacheView cache{nullptr, nullptr, dtype, s.block_size, s.kv_heads, s.head_dim, width};
  // Unused slots hold NaN.
  std::vector<char> keys(static_cast<size_t>(cache.key_block() * blocks), '\xff');
  std::vector<char> values(static_cast<size_t>(cache.value_block() * blocks), '\xff');
  if (s.head_dim & 1) std::fill(keys.begin(), keys.end(), '\0');  // an odd dimension's partner is zero
  cache.keys = keys.data();
  cache.values = values.data();
  std::vector<int32_t> table(static_cast<size_t>(blocks));
  for (int i = 0; i < blocks; ++i) table[static_cast<size_t>(i)] = blocks - 1 - i;
  const int64_t wide = int64_t{s.heads} * s.head_dim, narrow = int64_t{s.kv_heads} * s.head_dim;
  const auto view = [](const Floats& x, int64_t w) { return View{const_cast<float*>(x.data()), w, w}; };
  Floats slopes, sinks;
  for (int h = 0; h < s.heads; ++h) {
    slopes.push_back(0.02f * static_cast<float>(h + 1));
    sinks.push_back(static_cast<float>(h) - 1.5f);
  }
  const AttentionArgs args{cache,
                           view(q, wide),
                           view(k, narrow),
                           view(v, narrow),
                           {out, wide, wide},
                           s.heads,
                           0.4f,
                           s.softcap,
                           s.window,
                           rounded,
                           s.biased ? slopes.data() : nullptr,
                           s.biased ? sinks.data() : nullptr};
  const SequenceSpan span{0, tokens, 0, table.data()};
  Floats scratch(attend_scratch(s.head_dim));
  for (int row = 0; row < tokens; ++row) t->write_kv(args, span, row);
  const int64_t segments = (tokens + kSegment - 1) / kSegment, group = s.heads / s.kv_heads;
  Floats partials(static_cast<size_t>(segments * tokens * group * args.partial_floats()));
  for (int head = 0; head < s.kv_heads; ++head) {
    if (!split) {
      t->attend(args, span, {head, 0, tokens, 0, 1 << 30, segments, nullptr}, scratch.data());
      continue;
    }
    for (int key = 0; key < tokens; key += kSegment)
      t->attend(args, span, {head, 0, tokens, key, key + kSegment, segments, partials.data()}, scratch.data());
    t->attend_join(args, span, {head, 0, tokens, 0, 0, segments, partials.data()});
  }
}

void attention(const Kernels* kernels) {
  const Shape shapes[] = {{2, 2, 16, 16, 0, 0},
                          {6, 2, 5, 16, 9, 0},
                          {7, 1, 80, 32, 0, 3},
                          {14, 2, 64, 48, 70, 0},
                          {4, 2, 16, 16, 0, 0, true}};
  for (const Shape& s : shapes)
    for (const int tokens : {1, 75, 530}) {
      if (tokens > kSegment && s.head_dim > 16) continue;  // two segments once are enough for a slow machine
      for (const CacheDtype dtype :
           {CacheDtype::f32, CacheDtype::f16, CacheDtype::bf16, CacheDtype::int8, CacheDtype::f8})
        for (const bool rounded : {false, true}) {
          if (rounded && dtype < CacheDtype::bf16) continue;
          const int64_t n = int64_t{tokens} * s.heads * s.head_dim;
          const Floats q = noise(n), k = noise(n / (s.heads / s.kv_heads)), v = noise(n / (s.heads / s.kv_heads));
          const std::string what = "attend " + std::to_string(s.head_dim) + " tokens " + std::to_string(tokens) +
                                   " dtype " + std::to_string(static_cast<int>(dtype)) + (rounded ? " rounded" : "");
          Floats whole(static_cast<size_t>(n)), parts = whole;
          // A weight that stands between two bf16 numbers may round to either.
          compare(kernels, what, n, rounded ? 1e-3f : 1e-5f,
                  [&](const Kernels* t, float* out) { attend(t, s, dtype, rounded, false, tokens, q, k, v, out); });
          attend(kernels, s, dtype, rounded, false, tokens, q, k, v, whole.data());
          attend(kernels, s, dtype, rounded, true, tokens, q, k, v, parts.data());
          ++comparisons;
          if (std::memcmp(whole.data(), parts.data(), sizeof(float) * whole.size()) == 0) continue;
          ++failures;
          std::printf("%s %s: parts and whole differ\n", kernels->name, what.c_str());
        }
    }
}

}  // namespace
}  // namespace octavo

int main() {
  using namespace octavo;
  const Kernels* all[8];
  const int n = list_kernels(all, 8);
  for (int i = 0; i < n; ++i) {
    if (all[i] == scalar_kernels() && n > 1) continue;
    rows(all[i]);
    matrices(all[i]);
    attention(all[i]);
    std::printf("%s\n", all[i]->name);
  }
  std::printf("%d comparisons, %d failures\n", comparisons, failures);
  return failures ? 1 : 0;
}
