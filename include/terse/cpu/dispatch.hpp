/// Chooses the kernels of this machine.
#pragma once

#include "terse/config.hpp"
#include "terse/cpu/kernel_table.hpp"

#if !defined(TERSE_SEPARATE_KERNELS)
#include "terse/cpu/kernels.hpp"
#else

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {
namespace cpu {

/// As in kernels.hpp, which one unit of the program includes, compiled for the same instruction
/// set.
const KernelTable* kernels_named(const char* name) noexcept;
const KernelTable& kernels() noexcept;

}  // namespace cpu
}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse

#endif
