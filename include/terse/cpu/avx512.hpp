/// Host kernels with AVX-512 F, BW, VL, DQ and VNNI.
#pragma once

#include <cstddef>
#include <cstdint>

#include "terse/config.hpp"
#include "terse/cpu/avx2_levels.hpp"
#include "terse/cpu/avx2_trellis.hpp"
#include "terse/cpu/avx512_decode.hpp"
#include "terse/cpu/avx512_dense.hpp"
#include "terse/cpu/avx512_hadamard.hpp"
#include "terse/cpu/avx512_keys.hpp"
#include "terse/cpu/avx512_softmax.hpp"
#include "terse/cpu/avx512_values.hpp"
#include "terse/cpu/kernel_table.hpp"

#if TERSE_X86_DISPATCH

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {
namespace cpu {
namespace avx512 {

inline constexpr KernelTable table{
    .name = "avx512",
    .scores_f32 = scores_f32,
    .scores_f16 = scores<LoadF16>,
    .scores_e4m3 = scores<LoadE4m3>,
    .values_f32 = values_f32,
    .values_f16 = values<LoadF16>,
    .values_e4m3 = values<LoadE4m3>,
    .covers = covers_affine,
    .prepared_bytes = prepared_bytes,
    .prepare_queries = prepare_queries,
    .scores_affine = scores_affine,
    .values_affine = values_affine,
    .decode_affine = decode_affine,
    .decode_levels = avx2::decode_levels,
    .decode_trellis = avx2::decode_trellis,
    .softmax_block = softmax_block,
    .softmax_rows = softmax_rows,
    .hadamard = hadamard,
    .soft_cap = soft_cap,
};

}  // namespace avx512
}  // namespace cpu
}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse

#endif
