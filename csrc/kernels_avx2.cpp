#define OCTAVO_ISA avx2
#define OCTAVO_ISA_NAME "avx2"
#include "kernels.inl"

namespace octavo {
const Kernels* avx2_kernels() { return avx2::table(); }
}  // namespace octavo
