/// llama.cpp's q8_0 as a baseline: 32 channels share an fp16 factor, 8-bit codes. 8.5 bits.
///
/// Block format of ggml (`block_q8_0`): d = max|x| / 127, codes round(x / d) with the unrounded d.
/// llama.cpp rotates quantised caches by Hadamard matrices of 64 (pull request 21038); so does
/// this. The numbers are those of ggml; the order of the bytes is terse's own.
#pragma once

#include "terse/config.hpp"
#include "terse/quant/affine_group.hpp"
#include "terse/quant/hadamard.hpp"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {

using Q8_0Plain = AffineGroup<AffineSpec{.bits = 8, .group = 32, .rule = ScaleRule::abs_max_wide}>;
using Q8_0 = InBasis<Q8_0Plain, HadamardBasis<64>>;
static_assert(Q8_0::record(Side::key, 64).bytes * 8 == 64 * 64 * 17 / 2);  // 8.5 bits

}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
