#define OCTAVO_ISA neoni8mm
#define OCTAVO_ISA_NAME "neoni8mm"
#define OCTAVO_NEON 1
#include "kernels.inl"

namespace octavo {
const Kernels* neoni8mm_kernels() { return neoni8mm::table(); }
}  // namespace octavo
