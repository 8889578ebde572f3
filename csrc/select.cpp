// Which instruction sets this machine runs; decided once, at run time.
#include <cstring>

#include "kernels.h"

#if defined(OCTAVO_X86)
#include <cpuid.h>
#elif defined(OCTAVO_ARM64) && defined(__linux__)
#include <sys/auxv.h>
#elif defined(OCTAVO_ARM64) && defined(__APPLE__)
#include <sys/sysctl.h>
#endif

namespace octavo {
namespace {

#if defined(OCTAVO_X86)
struct Features {
  bool avx2 = false, avx2vnni = false, avx512 = false, avx512vnni = false, avx512bf16 = false;
};

// CPUID leaves 1 and 7, and XCR0 for what the operating system saves (Intel SDM vol. 1, 13 and 14.3).
Features detect() {
  Features f;
  unsigned a, b, c, d;
  if (!__get_cpuid(1, &a, &b, &c, &d)) return f;
  const bool xsave = c & (1u << 27), avx = c & (1u << 28), fma = c & (1u << 12), f16c = c & (1u << 29);
  if (!xsave || !avx) return f;
  unsigned low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  const bool ymm = (low & 0x6) == 0x6, zmm = (low & 0xe6) == 0xe6;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return f;
  f.avx2 = ymm && fma && f16c && (b & (1u << 5));
  const unsigned f_dq_bw_vl = (1u << 16) | (1u << 17) | (1u << 30) | (1u << 31);
  f.avx512 = f.avx2 && zmm && (b & f_dq_bw_vl) == f_dq_bw_vl;
  f.avx512vnni = f.avx512 && (c & (1u << 11));
  const bool vbmi = c & (1u << 1);
  unsigned a1;
  f.avx2vnni = f.avx2 && __get_cpuid_count(7, 1, &a1, &b, &c, &d) && (a1 & (1u << 4));
  if (f.avx512vnni && __get_cpuid_count(7, 1, &a1, &b, &c, &d)) f.avx512bf16 = vbmi && (a1 & (1u << 5));
  return f;
}
#elif defined(OCTAVO_ARM64)
struct Features {
  bool dot = false, i8mm = false;  // i8mm: with products of bf16, which came at the same time
};

#if defined(__APPLE__)
bool has(const char* name) {
  int value = 0;
  size_t size = sizeof(value);
  return sysctlbyname(name, &value, &size, nullptr, 0) == 0 && value != 0;
}
#endif

// Linux: bits of the kernel's arch/arm64/include/uapi/asm/hwcap.h, by number since older headers lack the names.
Features detect() {
  Features f;
#if defined(__linux__)
  const unsigned long first = getauxval(AT_HWCAP), second = getauxval(AT_HWCAP2);
  const unsigned long both = (1ul << 13) | (1ul << 14);  // I8MM, BF16
  f.dot = first & (1ul << 20);                           // ASIMDDP
  f.i8mm = f.dot && (second & both) == both;
#elif defined(__APPLE__)
  f.dot = has("hw.optional.arm.FEAT_DotProd");
  f.i8mm = f.dot && has("hw.optional.arm.FEAT_I8MM") && has("hw.optional.arm.FEAT_BF16");
#endif
  return f;
}
#endif

}  // namespace

int list_kernels(const Kernels** out, int capacity) {
  int n = 0;
  const auto put = [&](const Kernels* k) {
    if (n < capacity) out[n++] = k;
  };
#if defined(OCTAVO_X86)
  static const Features f = detect();
  if (f.avx512bf16) put(avx512bf16_kernels());
  if (f.avx512vnni) put(avx512vnni_kernels());
  if (f.avx512) put(avx512_kernels());
  if (f.avx2vnni) put(avx2vnni_kernels());
  if (f.avx2) put(avx2_kernels());
#elif defined(OCTAVO_ARM64)
  static const Features f = detect();
  if (f.i8mm) put(neoni8mm_kernels());
  if (f.dot) put(neondot_kernels());
  put(neon_kernels());  // part of every 64-bit ARM
#endif
  put(scalar_kernels());
  return n;
}

const Kernels* select_kernels(const char* name) {
  const Kernels* all[8];
  const int n = list_kernels(all, 8);
  if (!name || !*name) return all[0];
  for (int i = 0; i < n; ++i)
    if (std::strcmp(all[i]->name, name) == 0) return all[i];
  return nullptr;
}

}  // namespace octavo
