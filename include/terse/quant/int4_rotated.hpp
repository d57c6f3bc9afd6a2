/// Rotated int4: Hadamard over the head, 4-bit codes, one fp16 factor per token. 4 + 16/width bits.
///
/// No calibration, no tail, single-token append, any page. The scheme of SAW-INT4
/// (arXiv 2604.19157) with a zero-free grid and a least-squares factor in place of min-max.
#pragma once

#include "terse/config.hpp"
#include "terse/quant/affine_group.hpp"
#include "terse/quant/hadamard.hpp"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {

using Int4Rotated = InBasis<AffineGroup<AffineSpec{.bits = 4, .rule = ScaleRule::least_squares}>,
                            HadamardBasis<256>>;
static_assert(Int4Rotated::record(Side::key, 64).bytes == 64 * 64 / 2 + 2 * 64);  // 4.25 bits

}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
