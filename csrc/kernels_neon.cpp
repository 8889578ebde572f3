#define OCTAVO_ISA neon
#define OCTAVO_ISA_NAME "neon"
#define OCTAVO_NEON 1
#include "kernels.inl"

namespace octavo {
const Kernels* neon_kernels() { return neon::table(); }
}  // namespace octavo
