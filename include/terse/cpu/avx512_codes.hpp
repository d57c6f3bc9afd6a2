/// Packed codes of 16 lanes at a time with AVX-512.
#pragma once

#include <cstddef>

#include "terse/config.hpp"
#include "terse/cpu/simd.hpp"

#if TERSE_X86_DISPATCH

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {
namespace cpu {
namespace avx512 {
TERSE_BEGIN_AVX512

/// The `field`-th codes of a bundle's 64 bytes, lowest in their bytes, below other bits.
template <int Bits>
TERSE_INLINE_AVX512 __m512i stored_codes(const std::byte* bundle, int field) noexcept {
  const CodeField f = code_field<Bits>(field);
  __m512i codes = _mm512_loadu_si512(bundle + f.vector * 64);
  if (f.shift != 0) codes = _mm512_srl_epi32(codes, _mm_cvtsi32_si128(static_cast<int>(f.shift)));
  if (Bits == 3 && f.lower_bits != Bits) {
    const __m512i upper =
        _mm512_srl_epi32(_mm512_loadu_si512(bundle + f.upper_vector * 64),
                         _mm_cvtsi32_si128(static_cast<int>(f.upper_shift - f.lower_bits)));
    const __m512i lower_bits = _mm512_set1_epi8(static_cast<char>((1 << f.lower_bits) - 1));
    codes = _mm512_ternarylogic_epi32(lower_bits, codes, upper, 0xca);
  }
  return codes;
}

TERSE_END_AVX512
}  // namespace avx512
}  // namespace cpu
}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse

#endif
