/// Calibration: what is known of a model's keys and values before the first token, as data.
///
/// Each stream (a KV head's keys or values in one slot) has one array of floats:
///
///   mean       [channel]                  subtracted before the basis; 0 for values, whose weights
///                                         in an output need not add up to 1
///   weight     [basis channel]            of the errors of a basis channel, see feedback
///   to_basis   [channel, basis channel]   y = sum over c of (x[c] - mean[c]) * to_basis[c]
///   from_basis keys [channel, basis channel], values [basis channel, channel]
///                                         its inverse, in the order in which queries (keys) and
///                                         outputs (values) are sums of its rows
///   feedback   [basis channel, basis channel]
///
/// The cost of errors e of a stored vector is sum over j of weight[j] * (e[j] + sum over i > j of
/// feedback[i][j] * e[i])^2; entries on and above the diagonal of feedback are not read.
#pragma once

#include <concepts>
#include <cstddef>
#include <cstdint>

#include "terse/config.hpp"
#include "terse/core/span.hpp"
#include "terse/policy/codec.hpp"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {

/// Where the parts of a stream's calibration lie, in floats.
struct CalibrationLayout {
  int width = 0;

  [[nodiscard]] TERSE_HOST_DEVICE constexpr std::ptrdiff_t mean() const noexcept { return 0; }
  [[nodiscard]] TERSE_HOST_DEVICE constexpr std::ptrdiff_t weight() const noexcept { return width; }
  [[nodiscard]] TERSE_HOST_DEVICE constexpr std::ptrdiff_t to_basis() const noexcept {
    return std::ptrdiff_t{2} * width;
  }
  [[nodiscard]] TERSE_HOST_DEVICE constexpr std::ptrdiff_t from_basis() const noexcept {
    return to_basis() + matrix();
  }
  [[nodiscard]] TERSE_HOST_DEVICE constexpr std::ptrdiff_t feedback() const noexcept {
    return to_basis() + 2 * matrix();
  }
  /// Floats of a stream.
  [[nodiscard]] TERSE_HOST_DEVICE constexpr std::ptrdiff_t floats() const noexcept {
    return to_basis() + 3 * matrix();
  }

 private:
  [[nodiscard]] TERSE_HOST_DEVICE constexpr std::ptrdiff_t matrix() const noexcept {
    return std::ptrdiff_t{width} * width;
  }
};

/// Calibration of one slot, owned by the caller: host memory for a cache of the host, device memory
/// for one on the device.
struct SlotCalibration {
  const float* keys = nullptr;    ///< `[kv_head, CalibrationLayout{head_dim}.floats()]`
  const float* values = nullptr;  ///< the same of the values
};

/// Calibration of all slots of a policy class, owned by the caller.
struct CalibrationView {
  Span<const SlotCalibration> slots{};  ///< `[slot]`, host memory; empty: codecs do without
  int kv_heads = 0;                     ///< of the model, whose streams the arrays hold
  int head_dim = 0;
  /// Names the numbers, and is not 0: calibrations with the same identity encode alike. Part of the
  /// identity of caches and of saved sequences.
  std::uint64_t identity = 0;
};

/// The codec reads CodecContext::calibration where there is one.
template <class C>
concept UsesCalibration = Codec<C> && requires {
  requires C::uses_calibration;
};

/// A codec of the policy reads calibration.
template <class Policy>
inline constexpr bool uses_calibration =
    UsesCalibration<typename Policy::key_codec> || UsesCalibration<typename Policy::value_codec>;

/// Turns queries `[width]` to where stored keys are, so that their products are those of queries
/// and keys; codecs with a basis that is not orthogonal have one of their own.
template <class C>
concept HasQueryBasis = requires(const CodecContext& context, float* x) {
  C::query_to_basis(context, x);
};

/// What products with all stored keys lack, because a mean was taken off the keys.
template <class C>
concept HasQueryOffset = requires(const CodecContext& context, const float* x) {
  { C::query_offset(context, x) } -> std::same_as<float>;
};

/// What a codec turns: vectors to its basis, outputs (or decoded vectors) from it, or queries to
/// where stored keys are.
enum class Turn : std::uint8_t { to_basis, from_basis, query_to_basis };

/// A turn of vectors x [width] by a matrix, as data, so that threads can share it: x less
/// `subtracted`, then the sum of the rows of `matrix [width, width]`, each times its number of x,
/// in the order of rows (add_rows); or, where `multiplies_rows`, the sum_of_products with each row
/// plus its number of `added`, which is for keys from the basis only. Queries, and values from the
/// basis, have a matrix and nothing else; query_offset is a query's product with what to_basis
/// subtracts.
struct DenseTurn {
  const float* matrix = nullptr;      ///< null: there is none
  const float* subtracted = nullptr;  ///< `[width]` or null
  const float* added = nullptr;       ///< `[width]` or null
  bool multiplies_rows = false;
};

/// With a calibration the basis of vectors of up to `max_width` channels is a matrix, which
/// `dense_turn` gives; where that has none, it is the codec's UncalibratedBasis.
template <class C>
concept HasDenseBasis = Codec<C> && requires(const CodecContext& context, float* x) {
  { C::max_width } -> std::convertible_to<int>;
  C::UncalibratedBasis::to_basis(context, x);
  { C::dense_turn(context, Turn::to_basis) } -> std::same_as<DenseTurn>;
};

}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
