/// Views of the callers' tensors `[row, head, channel]`: channel stride 1, other strides in
/// elements.
#pragma once

#include <cstdint>

#include "terse/config.hpp"
#include "terse/core/math.hpp"
#include "terse/core/scalar.hpp"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {

/// Read-only `[row, head, channel]`. Row = one token of the step, sequences one after another.
struct HeadRows {
  const void* data = nullptr;
  Scalar scalar = Scalar::f32;
  std::int64_t row_stride = 0;   ///< elements from one row to the next
  std::int64_t head_stride = 0;  ///< elements from one head to the next

  HeadRows() = default;
  HeadRows(const void* pointer, Scalar type, std::int64_t row, std::int64_t head)
      : data(pointer), scalar(type), row_stride(row), head_stride(head) {}
  /// Dense `[row, head, channel]`.
  static HeadRows dense(const void* pointer, Scalar type, int heads, int channels) {
    return {pointer, type, static_cast<std::int64_t>(heads) * channels, channels};
  }

  /// One value as fp32.
  [[nodiscard]] TERSE_HOST_DEVICE float get(std::int64_t row, int head,
                                            int channel) const noexcept {
    const std::int64_t i = row * row_stride + head * head_stride + channel;
    switch (scalar) {
      case Scalar::f16:
        return to_float(static_cast<const F16*>(data)[i]);
      case Scalar::bf16:
        return to_float(static_cast<const BF16*>(data)[i]);
      default:
        return static_cast<const float*>(data)[i];
    }
  }

  /// Copies `channels` values of (row, head) as fp32.
  void load(std::int64_t row, int head, int channels, float* out) const noexcept {
    const std::int64_t at = row * row_stride + head * head_stride;
    switch (scalar) {
      case Scalar::f32: {
        const float* p = static_cast<const float*>(data) + at;
        for (int c = 0; c < channels; ++c) out[c] = p[c];
        break;
      }
      case Scalar::f16: {
        const F16* p = static_cast<const F16*>(data) + at;
        for (int c = 0; c < channels; ++c) out[c] = to_float(p[c]);
        break;
      }
      case Scalar::bf16: {
        const BF16* p = static_cast<const BF16*>(data) + at;
        for (int c = 0; c < channels; ++c) out[c] = to_float(p[c]);
        break;
      }
    }
  }
};

/// Writable `[row, head, channel]`.
struct MutableHeadRows {
  void* data = nullptr;
  Scalar scalar = Scalar::f32;
  std::int64_t row_stride = 0;
  std::int64_t head_stride = 0;

  static MutableHeadRows dense(void* pointer, Scalar type, int heads, int channels) {
    return {pointer, type, static_cast<std::int64_t>(heads) * channels, channels};
  }

  /// Stores one value, rounded as by store.
  TERSE_HOST_DEVICE void put(std::int64_t row, int head, int channel, float value) const noexcept {
    const std::int64_t i = row * row_stride + head * head_stride + channel;
    if (scalar == Scalar::f32) {
      static_cast<float*>(data)[i] = value;
    } else if (scalar == Scalar::f16) {
      static_cast<F16*>(data)[i] = to_f16_saturating(value);
    } else {
      static_cast<BF16*>(data)[i] = to_bf16(value);
    }
  }

  /// Stores `channels` fp32 values at (row, head), rounded to nearest even; fp16 saturates at
  /// 65504.
  void store(std::int64_t row, int head, int channels, const float* in) const noexcept {
    const std::int64_t at = row * row_stride + head * head_stride;
    switch (scalar) {
      case Scalar::f32: {
        float* p = static_cast<float*>(data) + at;
        for (int c = 0; c < channels; ++c) p[c] = in[c];
        break;
      }
      case Scalar::f16: {
        F16* p = static_cast<F16*>(data) + at;
        for (int c = 0; c < channels; ++c) p[c] = to_f16_saturating(in[c]);
        break;
      }
      case Scalar::bf16: {
        BF16* p = static_cast<BF16*>(data) + at;
        for (int c = 0; c < channels; ++c) p[c] = to_bf16(in[c]);
        break;
      }
    }
  }
};

}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
