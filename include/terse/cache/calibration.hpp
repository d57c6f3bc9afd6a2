/// `Calibration`: the calibration of a model's keys and values, made once, kept in a file.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#include "terse/cache/fingerprint.hpp"
#include "terse/config.hpp"
#include "terse/core/host_array.hpp"
#include "terse/core/math.hpp"
#include "terse/core/scalar.hpp"
#include "terse/core/span.hpp"
#include "terse/core/status.hpp"
#include "terse/policy/calibration.hpp"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {

/// Sizes of a calibration.
struct CalibrationShape {
  int slots = 0;
  int kv_heads = 0;
  int head_dim = 0;
};

namespace detail {

inline constexpr std::uint64_t calibration_magic = 0x31304c4143535254ull;  // "TRSCAL01"
inline constexpr std::uint32_t calibration_version = 1;

/// Layout of a file, little endian: this header, then for each slot the streams of its keys, then
/// those of its values. A stream is mean and weight in fp32, then in fp16 to_basis and the rows of
/// feedback up to the diagonal.
struct CalibrationHeader {
  std::uint64_t magic = calibration_magic;
  std::uint32_t version = calibration_version;
  std::int32_t slots = 0;
  std::int32_t kv_heads = 0;
  std::int32_t head_dim = 0;
  std::uint64_t model_fingerprint = 0;
  std::uint64_t payload_checksum = 0;
  std::uint64_t checksum = 0;  ///< of this header with this field 0
};
static_assert(sizeof(CalibrationHeader) == 48);

/// Writes the inverse of `matrix [n, n]`, which it destroys, by rows with the largest pivot. False
/// if the matrix is singular, but for rounding.
[[nodiscard]] inline bool invert(int n, double* matrix, double* inverse) noexcept {
  const auto row = [n](double* m, int i) { return m + std::ptrdiff_t{i} * n; };
  double peak = 0.0;
  for (int i = 0; i < n; ++i) {
    for (int k = 0; k < n; ++k) {
      row(inverse, i)[k] = i == k ? 1.0 : 0.0;
      if (std::fabs(row(matrix, i)[k]) > peak) peak = std::fabs(row(matrix, i)[k]);
    }
  }
  // Entries come with 11 bits; a pivot this small is what rounding left of nothing.
  const double least_pivot = n * 0x1p-40 * peak;
  for (int c = 0; c < n; ++c) {
    int pivot = c;
    for (int i = c + 1; i < n; ++i) {
      if (std::fabs(row(matrix, i)[c]) > std::fabs(row(matrix, pivot)[c])) pivot = i;
    }
    const double largest = row(matrix, pivot)[c];
    if (!(std::fabs(largest) > least_pivot)) return false;
    for (int k = 0; k < n; ++k) {
      std::swap(row(matrix, c)[k], row(matrix, pivot)[k]);
      std::swap(row(inverse, c)[k], row(inverse, pivot)[k]);
      row(matrix, c)[k] /= largest;
      row(inverse, c)[k] /= largest;
    }
    for (int i = 0; i < n; ++i) {
      const double factor = row(matrix, i)[c];
      if (i == c || factor == 0.0) continue;
      for (int k = 0; k < n; ++k) {
        row(matrix, i)[k] -= factor * row(matrix, c)[k];
        row(inverse, i)[k] -= factor * row(inverse, c)[k];
      }
    }
  }
  return true;
}

}  // namespace detail

/// Owns the numbers that CalibrationView names; they do not change once it is made.
class Calibration {
 public:
  static constexpr int max_slots = 1 << 16;
  static constexpr int max_kv_heads = 1 << 12;

  /// Calls `fill(side, slot, kv_head, stream)` for each stream, `stream
  /// [CalibrationLayout{head_dim}.floats()]` of zeros, to write mean, weight, to_basis and
  /// feedback; from_basis is computed. Matrices are rounded to fp16, as they are in a file; of
  /// feedback only what lies below the diagonal is read. `fill` may return a Status, which ends it
  /// all unless it is ok; nothing is left behind if it throws. Errors: invalid_argument (a size; a
  /// weight that is not within 1e-12 and 1e12, a number of a matrix that fp16 cannot hold, a
  /// value's mean that is not 0), not_finite, corrupt_data (a basis is singular), unsupported (out
  /// of host memory). Their detail: the stream's index in [slot, side, kv_head].
  template <class Fill>
  [[nodiscard]] static Expected<Calibration> make(const CalibrationShape& shape,
                                                  std::uint64_t model_fingerprint, Fill&& fill) {
    Calibration made;
    if (Status s = made.allocate(shape); !s.ok()) return s;
    made.model_fingerprint_ = model_fingerprint;
    const std::int64_t matrix = std::int64_t{shape.head_dim} * shape.head_dim;
    const HostArray<double> scratch(2 * matrix);
    if (scratch.data() == nullptr) return out_of_memory();
    Status status;
    std::int64_t index = 0;
    made.for_each_stream([&](Side side, int slot, int head, float* stream) {
      if (!status.ok()) return;
      if constexpr (std::is_same_v<decltype(fill(side, slot, head, stream)), Status>) {
        status = fill(side, slot, head, stream);
        if (!status.ok()) return;
      } else {
        fill(side, slot, head, stream);
      }
      status = made.complete(side, stream, scratch.data(), scratch.data() + matrix);
      status.detail = index++;
    });
    if (!status.ok()) return status;
    made.payload_checksum_ = made.checksum_payload();
    return Expected<Calibration>(std::move(made));
  }

  /// Reads a file. Errors: corrupt_data, mismatch (not a calibration, of another version, or of
  /// another model where `model_fingerprint` is not 0), and those of make.
  [[nodiscard]] static Expected<Calibration> load(Span<const std::byte> file,
                                                  std::uint64_t model_fingerprint = 0) noexcept {
    detail::CalibrationHeader header;
    if (file.data() == nullptr || file.size() < sizeof header) {
      return error(StatusCode::corrupt_data, "terse::Calibration::load: the header is cut off");
    }
    std::memcpy(&header, file.data(), sizeof header);
    if (header.magic != detail::calibration_magic) {
      return error(StatusCode::mismatch, "terse::Calibration::load: this is no calibration");
    }
    if (header.version != detail::calibration_version) {
      return error(StatusCode::mismatch,
                   "terse::Calibration::load: a calibration of another version; detail: version",
                   header.version);
    }
    detail::CalibrationHeader plain = header;
    plain.checksum = 0;
    if (detail::fingerprint(&plain, sizeof plain) != header.checksum) {
      return error(StatusCode::corrupt_data,
                   "terse::Calibration::load: the header's checksum does not match");
    }
    if (model_fingerprint != 0 && header.model_fingerprint != model_fingerprint) {
      return error(StatusCode::mismatch, "terse::Calibration::load: made for another model");
    }
    const CalibrationShape shape{header.slots, header.kv_heads, header.head_dim};
    if (Status s = check_shape(shape); !s.ok()) return s;
    const std::byte* in = file.data() + sizeof header;
    if (file.size() - sizeof header != payload_bytes(shape)) {
      return error(StatusCode::corrupt_data,
                   "terse::Calibration::load: the file is not as long as its header says; detail: "
                   "bytes",
                   static_cast<std::int64_t>(sizeof header + payload_bytes(shape)));
    }
    if (detail::fingerprint(in, payload_bytes(shape)) != header.payload_checksum) {
      return error(StatusCode::corrupt_data,
                   "terse::Calibration::load: the checksum does not match");
    }
    return make(shape, header.model_fingerprint, [&](Side, int, int, float* stream) {
      visit_stored(
          shape.head_dim, stream,
          [&](float* to) {
            std::memcpy(to, in, sizeof *to);
            in += sizeof *to;
          },
          [&](float* to) {
            F16 half;
            std::memcpy(&half, in, sizeof half);
            *to = to_float(half);
            in += sizeof half;
          });
    });
  }

  [[nodiscard]] const CalibrationShape& shape() const noexcept { return shape_; }
  [[nodiscard]] std::uint64_t model_fingerprint() const noexcept { return model_fingerprint_; }

  /// Of all slots, valid as long as this object.
  [[nodiscard]] CalibrationView view() const noexcept {
    return {{slots_.data(), static_cast<std::size_t>(shape_.slots)},
            shape_.kv_heads,
            shape_.head_dim,
            payload_checksum_ == 0 ? 1 : payload_checksum_};
  }

  /// Bytes of the file, exactly.
  [[nodiscard]] std::size_t saved_bytes() const noexcept {
    return sizeof(detail::CalibrationHeader) + payload_bytes(shape_);
  }
  /// Writes the file. Errors: buffer_too_small.
  [[nodiscard]] Status save(Span<std::byte> out) const noexcept {
    if (out.data() == nullptr || out.size() < saved_bytes()) {
      return error(
          StatusCode::buffer_too_small,
          "terse::Calibration::save: the buffer is smaller than saved_bytes; detail: bytes",
          static_cast<std::int64_t>(saved_bytes()));
    }
    detail::CalibrationHeader header;
    header.slots = shape_.slots;
    header.kv_heads = shape_.kv_heads;
    header.head_dim = shape_.head_dim;
    header.model_fingerprint = model_fingerprint_;
    header.payload_checksum = payload_checksum_;
    header.checksum = detail::fingerprint(&header, sizeof header);
    std::memcpy(out.data(), &header, sizeof header);
    std::byte* at = out.data() + sizeof header;
    write_payload([&](const void* bytes, std::size_t count) {
      std::memcpy(at, bytes, count);
      at += count;
    });
    return {};
  }

 private:
  Calibration() = default;

  [[nodiscard]] static Status check_shape(const CalibrationShape& s) noexcept {
    if (s.slots < 1 || s.slots > max_slots || s.kv_heads < 1 || s.kv_heads > max_kv_heads ||
        s.head_dim < 1 || s.head_dim > max_stream_width) {
      return error(StatusCode::invalid_argument,
                   "terse::CalibrationShape: slots must be in 1..65536, kv_heads and head_dim in "
                   "1..4096");
    }
    return {};
  }
  [[nodiscard]] static std::size_t streams(const CalibrationShape& s) noexcept {
    return 2 * static_cast<std::size_t>(s.slots) * static_cast<std::size_t>(s.kv_heads);
  }
  [[nodiscard]] static std::size_t payload_bytes(const CalibrationShape& s) noexcept {
    const auto width = static_cast<std::size_t>(s.head_dim);
    return streams(s) *
           (2 * width * sizeof(float) + (width * width + width * (width - 1) / 2) * sizeof(F16));
  }

  [[nodiscard]] static Status out_of_memory() noexcept {
    return error(StatusCode::unsupported, "terse::Calibration: out of host memory");
  }
  [[nodiscard]] Status allocate(const CalibrationShape& shape) noexcept {
    if (Status s = check_shape(shape); !s.ok()) return s;
    shape_ = shape;
    const auto floats = static_cast<std::uint64_t>(CalibrationLayout{shape.head_dim}.floats());
    if (streams(shape) > (std::uint64_t{1} << 40) / floats) {
      return error(StatusCode::unsupported, "terse::Calibration: more than 2^42 bytes");
    }
    floats_ = HostArray<float>(static_cast<std::int64_t>(streams(shape) * floats));
    slots_ = HostArray<SlotCalibration>(shape.slots);
    if (floats_.data() == nullptr || slots_.data() == nullptr) return out_of_memory();
    const std::ptrdiff_t side_floats =
        static_cast<std::ptrdiff_t>(floats) * std::ptrdiff_t{shape.kv_heads};
    for (int i = 0; i < shape.slots; ++i) {
      const float* keys = floats_.data() + 2 * i * side_floats;
      slots_[i] = {keys, keys + side_floats};
    }
    return {};
  }

  template <class Visit>
  void for_each_stream(Visit&& visit) const {
    float* stream = floats_.data();
    for (int slot = 0; slot < shape_.slots; ++slot) {
      for (const Side side : {Side::key, Side::value}) {
        for (int head = 0; head < shape_.kv_heads; ++head) {
          visit(side, slot, head, stream);
          stream += CalibrationLayout{shape_.head_dim}.floats();
        }
      }
    }
  }

  /// Visits what a file holds of a stream, in its order: `single(float*)` and `half(float*)`.
  template <class Float, class Single, class Half>
  static void visit_stored(int width, Float* stream, Single&& single, Half&& half) {
    const CalibrationLayout at{width};
    for (int i = 0; i < 2 * width; ++i) single(stream + at.mean() + i);
    for (int i = 0; i < width * width; ++i) half(stream + at.to_basis() + i);
    for (int i = 0; i < width; ++i) {
      for (int j = 0; j < i; ++j) half(stream + at.feedback() + std::ptrdiff_t{i} * width + j);
    }
  }

  /// Checks a stream, rounds it as a file does, and inverts its basis. `matrix`, `inverse`: scratch
  /// `[head_dim, head_dim]`.
  [[nodiscard]] Status complete(Side side, float* stream, double* matrix,
                                double* inverse) const noexcept {
    const int width = shape_.head_dim;
    const CalibrationLayout at{width};
    bool is_number = true, fits_half = true;
    visit_stored(
        width, stream, [&](const float* x) { is_number = is_number && is_finite(*x); },
        [&](float* x) {
          is_number = is_number && is_finite(*x);
          fits_half = fits_half && absolute(*x) <= f16_max;
          *x = to_float(to_f16_saturating(*x));
        });
    if (!is_number) {
      return error(StatusCode::not_finite,
                   "terse::Calibration: a number is NaN or infinite; detail: stream");
    }
    if (!fits_half) {
      return error(StatusCode::invalid_argument,
                   "terse::Calibration: to_basis or feedback holds a number above 65504; detail: "
                   "stream");
    }
    for (int c = 0; c < width; ++c) {
      const float weight = stream[at.weight() + c];
      if (!(weight >= 1e-12f && weight <= 1e12f)) {
        return error(StatusCode::invalid_argument,
                     "terse::Calibration: a weight is not within 1e-12 and 1e12; detail: stream");
      }
      if (side == Side::value && stream[at.mean() + c] != 0.0f) {
        return error(StatusCode::invalid_argument,
                     "terse::Calibration: values have no mean; detail: stream");
      }
    }
    for (int i = 0; i < width * width; ++i) matrix[i] = stream[at.to_basis() + i];
    if (!detail::invert(width, matrix, inverse)) {
      return error(StatusCode::corrupt_data,
                   "terse::Calibration: a basis is singular; detail: stream");
    }
    // Of to_basis [channel, basis channel] the inverse is [basis channel, channel].
    for (int k = 0; k < width; ++k) {
      for (int c = 0; c < width; ++c) {
        const auto entry = static_cast<float>(inverse[std::ptrdiff_t{k} * width + c]);
        const int row = side == Side::key ? c : k, column = side == Side::key ? k : c;
        stream[at.from_basis() + std::ptrdiff_t{row} * width + column] = entry;
      }
    }
    return {};
  }

  template <class Write>
  void write_payload(Write&& write) const {
    for_each_stream([&](Side, int, int, const float* stream) {
      visit_stored(
          shape_.head_dim, stream, [&](const float* x) { write(x, sizeof *x); },
          [&](const float* x) {
            const F16 half = to_f16_saturating(*x);
            write(&half, sizeof half);
          });
    });
  }
  [[nodiscard]] std::uint64_t checksum_payload() const noexcept {
    std::uint64_t sum = detail::fingerprint(nullptr, 0);
    write_payload([&](const void* bytes, std::size_t count) {
      sum = detail::fingerprint(bytes, count, sum);
    });
    return sum;
  }

  CalibrationShape shape_{};
  std::uint64_t model_fingerprint_ = 0;
  std::uint64_t payload_checksum_ = 0;
  HostArray<float> floats_;           // [slot, side, kv_head, floats of a stream]
  HostArray<SlotCalibration> slots_;  // [slot]
};

}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
