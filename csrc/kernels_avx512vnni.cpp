#define OCTAVO_ISA avx512vnni
#define OCTAVO_ISA_NAME "avx512vnni"
#include "kernels.inl"

namespace octavo {
const Kernels* avx512vnni_kernels() { return avx512vnni::table(); }
}  // namespace octavo
