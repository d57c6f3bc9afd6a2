/// llama.cpp's q4_0 as a baseline: 32 channels share an fp16 factor, 4-bit codes. 4.5 bits.
///
/// Block format of ggml (`block_q4_0`): d = x[argmax|x|] / -8, codes trunc(x / d + 8.5) with the
/// unrounded d, at most 15. llama.cpp rotates quantised caches by Hadamard matrices of 64 (pull
/// request 21038); so does this. The numbers are those of ggml; the order of the bytes is terse's.
#pragma once

#include "terse/config.hpp"
#include "terse/quant/affine_group.hpp"
#include "terse/quant/hadamard.hpp"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {

using Q4_0Plain =
    AffineGroup<AffineSpec{.bits = 4, .group = 32, .rule = ScaleRule::signed_max_wide}>;
using Q4_0 = InBasis<Q4_0Plain, HadamardBasis<64>>;
static_assert(Q4_0::record(Side::key, 64).bytes * 8 == 64 * 64 * 9 / 2);  // 4.5 bits

}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
