/// Hadamard rotation of the channels: spreads outliers evenly, costs no stored bytes.
/// Precedents for caches: QuaRot (arXiv 2404.00456, section 4), llama.cpp pull request 21038.
#pragma once

#include <cstdint>

#include "terse/config.hpp"
#include "terse/policy/codec.hpp"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {

/// Largest power of two that divides `width` and does not exceed `limit`.
TERSE_HOST_DEVICE constexpr int hadamard_size(int width, int limit) noexcept {
  int size = 1;
  while (size * 2 <= limit && width % (size * 2) == 0) size *= 2;
  return size;
}

/// 1 / sqrt(size) = 2^(-k/2): exact for even k; the odd ones carry one rounding of sqrt(1/2).
TERSE_HOST_DEVICE constexpr float hadamard_norm(int size) noexcept {
  float norm = 1.0f;
  for (int s = size; s > 1; s /= 4) norm *= s == 2 ? 0.70710678118654752f : 0.5f;
  return norm;
}

/// Orthonormal Hadamard transform of each run of `size` channels of `x [width]`, in place.
/// Additions in one fixed order, then one product by 1/sqrt(size): the same bits everywhere.
TERSE_HOST_DEVICE inline void hadamard(float* x, int width, int size) noexcept {
  for (int start = 0; start < width; start += size) {
    for (int half = 1; half < size; half *= 2) {
      for (int i = start; i < start + size; i += 2 * half) {
        for (int j = i; j < i + half; ++j) {
          const float a = x[j], b = x[j + half];
          x[j] = a + b;
          x[j + half] = a - b;
        }
      }
    }
  }
  const float norm = hadamard_norm(size);
  for (int c = 0; c < width; ++c) x[c] *= norm;
}

/// Basis of a codec: Hadamard over runs of at most `Limit` channels.
template <int Limit>
struct HadamardBasis {
  static constexpr int hadamard_limit = Limit;

  TERSE_HOST_DEVICE static void to_basis(const CodecContext& context, float* x) noexcept {
    hadamard(x, context.width, hadamard_size(context.width, Limit));
  }
  TERSE_HOST_DEVICE static void from_basis(const CodecContext& context, float* x) noexcept {
    to_basis(context, x);  // symmetric and orthonormal: its own inverse
  }
};

/// Whether a signed rotation turns the sign of a channel: one bit of MurmurHash3's finaliser of it.
TERSE_HOST_DEVICE constexpr bool turns_sign(int channel) noexcept {
  auto h = static_cast<std::uint32_t>(channel) + 1u;
  h = (h ^ h >> 16) * 0x85ebca6bu;
  h = (h ^ h >> 13) * 0xc2b2ae35u;
  return ((h ^ h >> 16) & 1u) != 0;
}

/// Turns the signs of `x [width]` that turns_sign names.
TERSE_HOST_DEVICE inline void turn_signs(float* x, int width) noexcept {
  for (int c = 0; c < width; ++c) x[c] = turns_sign(c) ? -x[c] : x[c];
}

/// Basis of a codec: fixed signs, then Hadamard over runs of at most `Limit` channels. Without the
/// signs numbers that are alike in all channels of a run would end in one.
template <int Limit>
struct SignedHadamardBasis {
  static constexpr int signed_hadamard_limit = Limit;

  TERSE_HOST_DEVICE static void to_basis(const CodecContext& context, float* x) noexcept {
    turn_signs(x, context.width);
    hadamard(x, context.width, hadamard_size(context.width, Limit));
  }
  TERSE_HOST_DEVICE static void from_basis(const CodecContext& context, float* x) noexcept {
    hadamard(x, context.width, hadamard_size(context.width, Limit));
    turn_signs(x, context.width);
  }
};

/// A codec in a rotated basis.
template <class CodecPart, class BasisPart>
struct InBasis : CodecPart, BasisPart {};

}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
