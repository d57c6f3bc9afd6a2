/// Chooses the kernels of this machine.
#pragma once

#include <cstring>

#include "terse/config.hpp"
#include "terse/cpu/avx2.hpp"
#include "terse/cpu/avx512.hpp"
#include "terse/cpu/kernel_table.hpp"
#include "terse/cpu/portable.hpp"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {
namespace cpu {

/// The table called `name` ("portable", "avx2", "avx512"), or null where the processor or the
/// operating system lacks its instructions (__builtin_cpu_supports asks both).
inline const KernelTable* kernels_named(const char* name) noexcept {
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
inline const KernelTable& kernels() noexcept {
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
