/// Host kernels with AVX2, FMA and F16C.
#pragma once

#include <cstddef>
#include <cstdint>

#include "terse/config.hpp"
#include "terse/cpu/avx2_affine.hpp"
#include "terse/cpu/avx2_decode.hpp"
#include "terse/cpu/avx2_dense.hpp"
#include "terse/cpu/avx2_levels.hpp"
#include "terse/cpu/avx2_trellis.hpp"
#include "terse/cpu/kernel_table.hpp"
#include "terse/quant/hadamard.hpp"

#if TERSE_X86_DISPATCH

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {
namespace cpu {
namespace avx2 {

inline constexpr KernelTable table{
    .name = "avx2",
    .scores_f32 = scores_f32,
    .scores_f16 = scores<LoadF16>,
    .scores_e4m3 = scores<LoadE4m3>,
    .values_f32 = values_f32,
    .values_f16 = values<LoadF16>,
    .values_e4m3 = values<LoadE4m3>,
    .covers = covers,
    .prepared_bytes = portable::prepared_bytes,
    .prepare_queries = portable::prepare_queries,
    .scores_affine = scores_affine,
    .values_affine = values_affine,
    .decode_affine = decode_affine,
    .decode_levels = decode_levels,
    .decode_trellis = decode_trellis,
    .softmax_block = softmax_block,
    .softmax_rows = softmax_rows,
    .hadamard = terse::hadamard,
    .soft_cap = soft_cap,
};

}  // namespace avx2
}  // namespace cpu
}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse

#endif
