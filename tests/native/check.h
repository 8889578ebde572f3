// What the native tests share: noise, and comparisons that are counted and told of.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "kernels.h"

namespace octavo::test {

using Floats = std::vector<float>;

inline int failures = 0, comparisons = 0;
inline std::mt19937 generator(7);

inline Floats noise(int64_t n, float size = 1) {
  std::normal_distribution<float> normal(0, size);
  Floats out(static_cast<size_t>(n));
  for (float& x : out) x = normal(generator);
  return out;
}

// A whole number from `low` to `high`.
inline int pick(int low, int high) { return std::uniform_int_distribution<int>(low, high)(generator); }

inline void check(bool good, const std::string& what) {
  ++comparisons;
  if (good) return;
  ++failures;
  std::printf("%s\n", what.c_str());
}

// `run` writes n floats; the scalar table's are right to `tolerance` of the largest.
inline void compare(const Kernels* tested, const std::string& what, int64_t n, float tolerance,
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
  check(same && worst <= tolerance * largest, std::string(tested->name) + " " + what + ": off by " +
                                                  std::to_string(worst) + " of " + std::to_string(largest) +
                                                  (same ? "" : ", or out of place"));
}

// Each of these looks at one table of kernels.
void row_kernels(const Kernels* k);
void dense_kernels(const Kernels* k);
void quantized_kernels(const Kernels* k);
void attention_kernels(const Kernels* k);

}  // namespace octavo::test
