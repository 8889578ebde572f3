#define OCTAVO_ISA avx512
#define OCTAVO_ISA_NAME "avx512"
#include "kernels.inl"

namespace octavo {
const Kernels* avx512_kernels() { return avx512::table(); }
}  // namespace octavo
