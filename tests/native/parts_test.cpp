// The native code around the kernels: pool, packing, the store, the sampler and a small plan. Built and run by
// test_kernels.py, under sanitizers by `make test-sanitize`, and for ARM under an emulator by `make test-arm`.
#include "check.h"

namespace octavo::test {

void pool_parts();
void weight_parts();
void sampler_parts();
void plan_parts();

}  // namespace octavo::test

int main() {
  using namespace octavo::test;
  pool_parts();
  weight_parts();
  sampler_parts();
  plan_parts();
  std::printf("%d comparisons, %d failures\n", comparisons, failures);
  return failures ? 1 : 0;
}
