#define OCTAVO_ISA neondot
#define OCTAVO_ISA_NAME "neondot"
#define OCTAVO_NEON 1
#include "kernels.inl"

namespace octavo {
const Kernels* neondot_kernels() { return neondot::table(); }
}  // namespace octavo
