/// The kernels of every instruction set, compiled, and the choice among them.
///
/// `dispatch.hpp` includes this, so that nothing needs to be linked. They do not depend on a policy
/// and are most of what a unit with attention costs to compile: where TERSE_SEPARATE_KERNELS is
/// defined for all of a program, exactly one of its units includes this file, and the others
/// compile without.
#pragma once

#include <cstring>

#include "terse/config.hpp"
#include "terse/cpu/avx2.hpp"
#include "terse/cpu/avx512.hpp"
#include "terse/cpu/kernel_table.hpp"
#include "terse/cpu/portable.hpp"

#if defined(TERSE_SEPARATE_KERNELS)
#define TERSE_KERNEL_LINKAGE
#else
#define TERSE_KERNEL_LINKAGE inline
#endif

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {
namespace cpu {

#if defined(TERSE_SEPARATE_KERNELS)
const KernelTable* kernels_named(const char* name) noexcept;
const KernelTable& kernels() noexcept;
#endif

/// The table called `name` ("portable", "avx2", "avx512"), or null where the processor or the
/// operating system lacks its instructions (__builtin_cpu_supports asks both).
TERSE_KERNEL_LINKAGE const KernelTable* kernels_named(const char* name) noexcept {
  if (std::strcmp(name, "portable") == 0) return &portable::table;
#if TERSE_X86_DISPATCH
  __builtin_cpu_init();
  // Every processor with AVX2 and FMA converts fp16 too (F16C); compilers cannot all ask for it.
  const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (std::strcmp(name, "avx2") == 0) return has_avx2 ? &avx2::table : nullptr;
  if (std::strcmp(name, "avx512") == 0) {
    const bool has_avx512 =
        has_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vnni");
    return has_avx512 ? &avx512::table : nullptr;
  }
#endif
  return nullptr;
}

/// The fastest table that this machine can run.
TERSE_KERNEL_LINKAGE const KernelTable& kernels() noexcept {
  static const KernelTable* const best = [] {
    for (const char* name : {"avx512", "avx2"}) {
      if (const KernelTable* table = kernels_named(name)) return table;
    }
    return &portable::table;
  }();
  return *best;
}

}  // namespace cpu
}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse

#undef TERSE_KERNEL_LINKAGE
