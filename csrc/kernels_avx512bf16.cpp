#define OCTAVO_ISA avx512bf16
#define OCTAVO_ISA_NAME "avx512bf16"
#include "kernels.inl"

namespace octavo {
const Kernels* avx512bf16_kernels() { return avx512bf16::table(); }
}  // namespace octavo
