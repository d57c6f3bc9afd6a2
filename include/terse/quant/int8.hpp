/// 8-bit codes, one fp16 factor per token and head, symmetric. 8 + 16/width bits.
#pragma once

#include "terse/config.hpp"
#include "terse/quant/affine_group.hpp"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {

using Int8 = AffineGroup<AffineSpec{.bits = 8, .rule = ScaleRule::abs_max}>;
static_assert(Int8::record(Side::key, 64).bytes == 64 * 64 + 2 * 64);  // 8.25 bits at width 64

}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
