// The sampler's passes over a row, compiled for several instruction sets and chosen at run time. Lanes are fixed, so
// that a sum depends on nothing but the row. Here, unlike in the kernels, the compiler may fuse multiplications with
// additions (a third faster): there is no second path whose bits must be the same.
#include "sampler_passes.h"

#include <algorithm>
#include <cstring>
#include <limits>

#if defined(__clang__)
#pragma clang diagnostic ignored "-Wpsabi"
#elif defined(__GNUC__)
#pragma GCC diagnostic ignored "-Wpsabi"  // 64-byte vectors pass between inlined functions only
#endif
#define OCTAVO_INLINE static inline __attribute__((always_inline))

namespace octavo::sampler {
namespace {

typedef float Floats __attribute__((vector_size(64)));
typedef uint32_t Bits __attribute__((vector_size(64)));
typedef int32_t Ints __attribute__((vector_size(64)));

constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();
constexpr float kLog2E = 1.44269504088896341f;
constexpr float kSpan = 87.0f;         // exp(-88) is denormal
constexpr float kRound = 12582912.0f;  // adding it rounds to an integer, held in the low bits

}  // namespace
}  // namespace octavo::sampler

#define OCTAVO_ISA baseline
#include "sampler_passes.inl"
#undef OCTAVO_ISA

#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#pragma GCC optimize("fp-contract=fast")
#endif
#define OCTAVO_ISA avx2
#include "sampler_passes.inl"
#undef OCTAVO_ISA
#if defined(__clang__)
#pragma clang attribute pop
#pragma clang attribute push(__attribute__((target("avx512f"))), apply_to = function)
#else
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx512f,fma")
#pragma GCC optimize("fp-contract=fast")
#endif
#define OCTAVO_ISA avx512
#include "sampler_passes.inl"
#undef OCTAVO_ISA
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif

namespace octavo::sampler {
namespace {

struct Passes {
  decltype(&baseline::block_maxima) block_maxima;
  decltype(&baseline::block_exp_sums) block_exp_sums;
  decltype(&baseline::count_over) count_over;
};

Passes choose() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f")) return {avx512::block_maxima, avx512::block_exp_sums, avx512::count_over};
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
    return {avx2::block_maxima, avx2::block_exp_sums, avx2::count_over};
#endif
  return {baseline::block_maxima, baseline::block_exp_sums, baseline::count_over};
}

const Passes kPasses = choose();

// The last block of a row, padded with -inf to full length.
struct Tail {
  alignas(64) float values[kBlock];
  Tail(const float* x, int64_t count) {
    std::memcpy(values, x, static_cast<size_t>(count) * sizeof(float));
    for (int64_t i = count; i < kBlock; ++i) values[i] = kMinusInfinity;
  }
};

}  // namespace

bool group_maxima(const float* x, int64_t vocab, float* maxima) {
  const int64_t whole = vocab / kBlock;
  bool bad = kPasses.block_maxima(x, whole, maxima);
  if (whole * kBlock < vocab) {
    const Tail tail(x + whole * kBlock, vocab - whole * kBlock);
    bad |= kPasses.block_maxima(tail.values, 1, maxima + whole * kLanes);
  }
  return bad;
}

void block_stats(const float* x, int64_t count, float* maxima, double* sum) {
  *sum = 0;
  if (group_maxima(x, count, maxima)) maxima[0] = std::numeric_limits<float>::quiet_NaN();
  const float top = *std::max_element(maxima, maxima + kLanes);
  if (top > kMinusInfinity && top < -kMinusInfinity) exp_sums(x, count, Weighting(top, 1.0f, kMinusInfinity), sum);
}

double exp_sums(const float* x, int64_t vocab, const Weighting& weighting, double* by_block) {
  const int64_t whole = vocab / kBlock;
  double total = kPasses.block_exp_sums(x, whole, weighting, by_block);
  if (whole * kBlock < vocab) {
    const Tail tail(x + whole * kBlock, vocab - whole * kBlock);
    total += kPasses.block_exp_sums(tail.values, 1, weighting, by_block + whole);
  }
  return total;
}

int64_t count_above(const float* x, int64_t count, float value) { return kPasses.count_over(x, count, value, false); }

int64_t count_not_below(const float* x, int64_t count, float value) {
  return kPasses.count_over(x, count, value, true);
}

Weighting::Weighting(float top, float temperature, float least)
    : top(top), scale(kLog2E / temperature), floor(std::max(least, top - kSpan * temperature)) {}

float Weighting::of(float logit) const {
  if (!(logit >= floor)) return 0.0f;
  float weight = (logit - top) * scale;
  baseline::exp2_in_place<float, uint32_t>(weight);
  return weight;
}

uint64_t key_of(float logit, int32_t id) {
  const float positive_zero = logit + 0.0f;  // -0 and 0 are equal, so their keys must be
  uint32_t bits;
  std::memcpy(&bits, &positive_zero, sizeof bits);
  bits = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
  return static_cast<uint64_t>(bits) << 32 | (0xffffffffu - static_cast<uint32_t>(id));
}

int32_t id_of(uint64_t key) { return static_cast<int32_t>(0xffffffffu - static_cast<uint32_t>(key)); }

float logit_of(uint64_t key) {
  uint32_t bits = static_cast<uint32_t>(key >> 32);
  bits = bits & 0x80000000u ? bits & 0x7fffffffu : ~bits;
  float logit;
  std::memcpy(&logit, &bits, sizeof logit);
  return logit;
}

}  // namespace octavo::sampler
