#define OCTAVO_ISA avx2vnni
#define OCTAVO_ISA_NAME "avx2vnni"
#include "kernels.inl"

namespace octavo {
const Kernels* avx2vnni_kernels() { return avx2vnni::table(); }
}  // namespace octavo
