#define OCTAVO_ISA scalar
#define OCTAVO_ISA_NAME "scalar"
#include "kernels.inl"

namespace octavo {
const Kernels* scalar_kernels() { return scalar::table(); }
}  // namespace octavo
