// Attention over the paged cache, whole and in parts.
#include "check.h"

namespace octavo::test {
namespace {

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

}  // namespace

void attention_kernels(const Kernels* kernels) {
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
          check(std::memcmp(whole.data(), parts.data(), sizeof(float) * whole.size()) == 0,
                std::string(kernels->name) + " " + what + ": parts and whole differ");
        }
    }
}

}  // namespace octavo::test
