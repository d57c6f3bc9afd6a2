/// What the vectorised kernels share: compiler spellings, and where a record's parts lie.
///
/// Instruction sets are named function by function, so no compiler flag is needed to build them and
/// none of their instructions can run before `kernels()` has asked the processor.
#pragma once

#include <cstddef>
#include <cstdint>

#include "terse/config.hpp"
#include "terse/quant/affine_group.hpp"

#if TERSE_X86_DISPATCH
#include <immintrin.h>

#define TERSE_TARGET_AVX2 __attribute__((target("avx2,fma,f16c")))
#define TERSE_INLINE_AVX2 __attribute__((target("avx2,fma,f16c"), always_inline)) inline
#define TERSE_TARGET_AVX512 \
  __attribute__((target("avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")))
#define TERSE_INLINE_AVX512                                                             \
  __attribute__((target("avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni"), \
                 always_inline)) inline
#endif

// g++ takes the undefined pass-through operands inside its own AVX-512 intrinsics for a mistake.
#if defined(__clang__) || !TERSE_X86_DISPATCH
#define TERSE_BEGIN_AVX512
#define TERSE_END_AVX512
#else
#define TERSE_BEGIN_AVX512                                                             \
  _Pragma("GCC diagnostic push") _Pragma("GCC diagnostic ignored \"-Wuninitialized\"") \
      _Pragma("GCC diagnostic ignored \"-Wmaybe-uninitialized\"")
#define TERSE_END_AVX512 _Pragma("GCC diagnostic pop")
#endif

// Loops over registers: the compiler must unroll them whole, or the registers become memory.
// Loops marked TERSE_ROLL hold so many registers that g++ would spill them if it unrolled.
#if defined(__CUDACC__)
// nvcc hands the pragmas on to the host compiler, with a warning that they are not its own.
#pragma nv_diag_suppress 1675
#endif
#if defined(__clang__)
#define TERSE_UNROLL _Pragma("unroll")
#define TERSE_ROLL _Pragma("nounroll")
#else
#define TERSE_UNROLL _Pragma("GCC unroll 16")
#define TERSE_ROLL _Pragma("GCC unroll 1")
#endif

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {
namespace cpu {

/// Byte pointers into one record of an AffineFormat.
struct AffineParts {
  const std::byte* codes;
  const std::byte* scales;  ///< fp16, order of affine_param_index
  const std::byte* minima;  ///< the same; only read where the format has them
  std::size_t bytes;        ///< of the record

  AffineParts(const AffineFormat& f, Side side, int width, const std::byte* record) noexcept {
    Record r;
    r.add(codes_bytes(f.bits, side, width));
    const auto params = static_cast<std::size_t>(affine_params(f, width)) * sizeof(F16);
    r.add(params);
    r.add(f.has_min ? params : 0);
    codes = record;
    scales = record + r.sections[1].offset_bytes;
    minima = record + r.sections[2].offset_bytes;
    bytes = r.bytes;
  }
};

/// Whether scale groups align with the vectors of the codes: 16 lanes, of tokens or channels. Only
/// values are read from codes of 1 bit.
inline bool covers_affine(const AffineFormat& f, Side side, int width) noexcept {
  if (f.bits == 1 && side == Side::key) return false;
  if (f.granularity == Granularity::per_channel) return f.group % 16 == 0;
  return f.group == 0 || f.group >= width ||
         f.group % (side == Side::key ? codes_per_lane(f.bits) : 16) == 0;
}

/// A format as kernels read it. Where groups have minima, codes count from the middle of their grid
/// and minima become middles (minimum + lift * scale): two large sums would cancel otherwise.
struct ReadFormat : AffineFormat {
  float lift = 0.0f;

  explicit ReadFormat(const AffineFormat& f) noexcept : AffineFormat(f) {
    if (!f.has_min) return;
    centre = static_cast<float>((1 << f.bits) - 1) / 2.0f;
    lift = centre - f.centre;
  }
};

/// Rows that one pass over a dense block serves: the largest tile that fits the registers, without
/// leaving a thin remainder.
constexpr int dense_row_tile(int rows) noexcept {
  return rows >= 9 || rows == 6 ? 6 : (rows >= 4 ? 4 : rows);
}

/// Coefficients of e^r = 1 + r + r^2 g(r) for |r| <= ln(2) / 2; relative error 3.1e-9.
inline constexpr float exp_g[5] = {0.49999994f, 0.166665211f, 0.041668389f, 0.00836871099f,
                                   0.00138146104f};
inline constexpr float log2_e = 1.44269504f;
inline constexpr float ln_2_high = 0.693147182f;
inline constexpr float ln_2_low = -1.90465421e-9f;
/// tanh(x) = x + x^3 (c0 + c1 x^2 + ...) below tanh_near, where (1 - e) / (1 + e) would cancel.
inline constexpr float tanh_series[4] = {-1.0f / 3.0f, 2.0f / 15.0f, -17.0f / 315.0f,
                                         62.0f / 2835.0f};
inline constexpr float tanh_near = 0.25f;
/// exp of anything below is 0 in fp32; a finite floor keeps infinities out of the reduction.
inline constexpr float exp_floor = -110.0f;

}  // namespace cpu
}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
