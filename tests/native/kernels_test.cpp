// Compares the kernels of every instruction set that this machine runs with the scalar ones, on odd sizes.
// Built and run by test_kernels.py, and for ARM under an emulator by `make test-arm`. Ends with 1 on a difference.
#include "check.h"

int main() {
  using namespace octavo;
  const Kernels* all[8];
  const int n = list_kernels(all, 8);
  for (int i = 0; i < n; ++i) {
    if (all[i] == scalar_kernels() && n > 1) continue;
    test::row_kernels(all[i]);
    test::dense_kernels(all[i]);
    test::quantized_kernels(all[i]);
    test::attention_kernels(all[i]);
    std::printf("%s\n", all[i]->name);
  }
  std::printf("%d comparisons, %d failures\n", test::comparisons, test::failures);
  return test::failures ? 1 : 0;
}
