# The kernels of the processor that is built for: `kernels` (sources, each with its instruction set's flags),
# `kernel_options` and `kernel_definitions`. Chosen among at run time (select.cpp); nothing here is -march=native.
# `parts` is the rest of the native code that knows no Python.
set(here ${CMAKE_CURRENT_LIST_DIR})
foreach(part mixture pack plan plan_adapters plan_experts plan_ops pool sampler sampler_passes store team)
  list(APPEND parts ${here}/${part}.cpp)
endforeach()
# The plainest first: of equal inline functions the linker keeps the first one's, which any processor runs.
set(kernels ${here}/select.cpp ${here}/kernels_scalar.cpp)
# -ffp-contract=off: a product and a sum are fused where a kernel says so and nowhere else, so that an element
# comes out the same in a full vector, in a tail and in a batch. GCC 12 takes the undefined registers of its own
# AVX-512 headers for uninitialized variables.
set(kernel_options -fno-math-errno -fno-trapping-math -ffp-contract=off -Wall -Wextra -Wno-maybe-uninitialized
                   -Wno-uninitialized)
if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64|amd64")
  set(kernel_definitions OCTAVO_X86)
  set(avx2 -mavx2 -mfma -mf16c)
  set(avx2vnni ${avx2} -mavxvnni)
  set(avx512 ${avx2} -mavx512f -mavx512bw -mavx512vl -mavx512dq)
  set(avx512vnni ${avx512} -mavx512vnni)
  set(avx512bf16 ${avx512vnni} -mavx512bf16 -mavx512vbmi)
  foreach(isa avx2 avx2vnni avx512 avx512vnni avx512bf16)
    list(APPEND kernels ${here}/kernels_${isa}.cpp)
    set_source_files_properties(${here}/kernels_${isa}.cpp PROPERTIES COMPILE_OPTIONS "${${isa}}")
  endforeach()
elseif(CMAKE_SYSTEM_PROCESSOR MATCHES "aarch64|ARM64|arm64")
  set(kernel_definitions OCTAVO_ARM64)
  set(neondot -march=armv8.2-a+dotprod)
  set(neoni8mm -march=armv8.2-a+dotprod+i8mm+bf16)
  foreach(isa neon neondot neoni8mm)
    list(APPEND kernels ${here}/kernels_${isa}.cpp)
    set_source_files_properties(${here}/kernels_${isa}.cpp PROPERTIES COMPILE_OPTIONS "${${isa}}")
  endforeach()
endif()
