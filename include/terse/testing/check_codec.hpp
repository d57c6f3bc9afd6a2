/// Whether a codec keeps the contract of policy/codec.hpp.
#pragma once

#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "terse/config.hpp"
#include "terse/core/scalar.hpp"
#include "terse/policy/codec.hpp"
#include "terse/quant/affine_group.hpp"
#include "terse/quant/fp8.hpp"
#include "terse/testing/report.hpp"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {
namespace testing {
namespace detail {

/// Numbers between two runs of other numbers that must not be read.
class GuardedInput {
 public:
  GuardedInput(const std::vector<float>& x, float guard) : all_(margin, guard) {
    all_.insert(all_.end(), x.begin(), x.end());
    all_.insert(all_.end(), margin, guard);
  }
  [[nodiscard]] const float* data() const noexcept { return all_.data() + margin; }

 private:
  static constexpr std::size_t margin = 64;
  std::vector<float> all_;
};

/// A record between two runs of bytes that must not be written, at the alignment of a page.
class GuardedRecord {
 public:
  GuardedRecord(std::size_t size, int fill) : lines_(size / sizeof(Line) + 5), size_(size) {
    std::memset(lines_.data(), guard, lines_.size() * sizeof(Line));
    std::memset(data(), fill, size);
  }
  [[nodiscard]] std::byte* data() noexcept { return lines_[2].bytes; }
  [[nodiscard]] const std::byte* data() const noexcept { return lines_[2].bytes; }
  [[nodiscard]] bool intact() const noexcept {
    const auto* all = reinterpret_cast<const unsigned char*>(lines_.data());
    const std::size_t first = 2 * sizeof(Line);
    for (std::size_t i = 0; i < lines_.size() * sizeof(Line); ++i) {
      if ((i < first || i >= first + size_) && all[i] != guard) return false;
    }
    return true;
  }
  [[nodiscard]] bool same_bytes(const GuardedRecord& other) const noexcept {
    return std::memcmp(data(), other.data(), size_) == 0;
  }

 private:
  static constexpr int guard = 0x5c;
  struct alignas(record_align_bytes) Line {
    std::byte bytes[record_align_bytes];
  };
  std::vector<Line> lines_;
  std::size_t size_;
};

inline bool same_bits(float a, float b) noexcept {
  return std::bit_cast<std::uint32_t>(a) == std::bit_cast<std::uint32_t>(b);
}

/// The checks of one codec, side and width.
template <Codec C>
class CodecCheck {
 public:
  CodecCheck(Checker& checker, Side side, int width)
      : check_(checker), context_{side, width}, size_(C::record(side, width).bytes) {}

  void run() {
    check_record();
    if (!check_.ok()) return;
    const std::vector<float> x = in_basis(normals(1));
    check_writing(x);
    check_quality(x);
    check_tokens(x);
    check_edges();
    check_format(x);
    check_basis();
  }

 private:
  using Values = std::vector<float>;

  [[nodiscard]] std::size_t count() const {
    return static_cast<std::size_t>(block_tokens * context_.width);
  }
  [[nodiscard]] Values normals(std::uint64_t seed) const {
    Sequence sequence(seed);
    Values x(count());
    for (float& v : x) v = sequence.normal();
    return x;
  }
  [[nodiscard]] Values in_basis(Values x) const {
    for (int t = 0; t < block_tokens; ++t) to_basis<C>(context_, x.data() + t * context_.width);
    return x;
  }
  [[nodiscard]] GuardedRecord encoded(const Values& x, int fill = 0, float guard = 0) const {
    GuardedRecord record(size_, fill);
    if constexpr (CanEncodeBlock<C>) {
      const GuardedInput input(x, guard);
      C::encode_block(context_, input.data(), record.data());
    } else {
      for (int t = 0; t < block_tokens; ++t) encode_token(x, t, record, guard);
    }
    return record;
  }
  void encode_token(const Values& x, int token, GuardedRecord& record, float guard = 0) const {
    if constexpr (CanEncodeToken<C>) {
      const auto first = x.begin() + std::ptrdiff_t{token} * context_.width;
      const GuardedInput input(Values(first, first + context_.width), guard);
      C::encode_token(context_, input.data(), token, record.data());
    }
  }
  [[nodiscard]] Values decoded(const GuardedRecord& record) const {
    Values x(count());
    for (int t = 0; t < block_tokens; ++t) {
      for (int c = 0; c < context_.width; ++c) x[index(t, c)] = decode(record, t, c);
    }
    return x;
  }
  [[nodiscard]] float decode(const GuardedRecord& record, int token, int channel) const {
    return static_cast<float>(C::decode(context_, record.data(), token, channel));
  }
  [[nodiscard]] std::size_t index(int token, int channel) const {
    return static_cast<std::size_t>(token * context_.width + channel);
  }
  [[nodiscard]] static bool finite(const Values& x) {
    for (const float v : x) {
      if (!is_finite(v)) return false;
    }
    return true;
  }
  [[nodiscard]] static bool same(const Values& a, const Values& b) {
    return std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
  }
  [[nodiscard]] static double distance(const Values& a, const Values& b) {
    double sum = 0;
    for (std::size_t i = 0; i < a.size(); ++i) sum += (double{a[i]} - b[i]) * (double{a[i]} - b[i]);
    return std::sqrt(sum);
  }
  /// First token other than `except` that two blocks decode differently, or -1.
  [[nodiscard]] int changed_token(const Values& a, const Values& b, int except) const {
    for (int t = 0; t < block_tokens; ++t) {
      for (int c = 0; c < context_.width && t != except; ++c) {
        if (!same_bits(a[index(t, c)], b[index(t, c)])) return t;
      }
    }
    return -1;
  }

  void check_record() {
    const Record r = C::record(context_.side, context_.width);
    check_.expect(r.num_sections >= 1 && r.num_sections <= Record::max_sections,
                  "record has no sections, or more than max_sections");
    check_.expect(r.bytes > 0 && r.bytes % record_align_bytes == 0,
                  "record.bytes is not a positive multiple of 128");
    std::size_t end = 0;
    for (int i = 0; i < r.num_sections && check_.ok(); ++i) {
      const Section& s = r.sections[i];
      check_.expect(s.offset_bytes % 16 == 0, "a section does not begin at a multiple of 16 bytes");
      check_.expect(s.offset_bytes >= end, "sections overlap or are out of order");
      end = s.offset_bytes + s.bytes;
      check_.expect(end <= r.bytes, "a section ends after record.bytes");
    }
  }

  void check_writing(const Values& x) {
    const GuardedRecord record = encoded(x);
    check_.expect(record.intact(), "encoding writes outside the record");
    check_.expect(encoded(x).same_bytes(record), "encoding is not deterministic");
    const float nan = std::numeric_limits<float>::quiet_NaN();
    check_.expect(encoded(x, 0, nan).same_bytes(record) && encoded(x, 0, 1e30f).same_bytes(record),
                  "encoding reads outside its input");
    check_.expect(same(decoded(encoded(x, 0xff)), decoded(record)),
                  "what a block decodes to depends on the bytes that were there before");
    check_.expect(same(decoded(record), decoded(record)), "decoding is not deterministic");
  }

  void check_quality(const Values& x) {
    const Values first = decoded(encoded(x));
    check_.expect(finite(first), "a block of Gaussian numbers decodes to infinity or NaN");
    const Values zeros(count(), 0.0f);
    const double error = distance(x, first), size = distance(x, zeros);
    check_.expect(error < size, "decoded numbers are farther from the input than zeros");
    const double again = distance(first, decoded(encoded(first)));
    double most = 1.01 * error;
    if constexpr (requires { requires C::is_unbiased; }) {
      // Errors that stand upright on the input lengthen it, and with it the next error, which is as
      // random as the first one.
      most = size > 0 ? 1.1 * error * std::sqrt(1 + error * error / (size * size)) : 0;
    }
    check_.expect(again <= most + 1e-6 * size,
                  "encoding decoded numbers again moves them farther than the first encoding did");
  }

  void check_tokens(const Values& x) {
    if constexpr (C::granularity == Granularity::per_token) {
      const Values before = decoded(encoded(x));
      const Values other = in_basis(normals(2));
      for (const int token : {0, 17, block_tokens - 1}) {
        Values changed = x;
        for (int c = 0; c < context_.width; ++c) {
          changed[index(token, c)] = 100.0f * other[index(token, c)];
        }
        check_.expect(changed_token(before, decoded(encoded(changed)), token) < 0,
                      "granularity is per_token, but a token changes what others decode to");
      }
    }
    if constexpr (CanEncodeToken<C>) {
      GuardedRecord backwards(size_, 0);
      for (int t = block_tokens - 1; t >= 0; --t) encode_token(x, t, backwards);
      const Values forwards = decoded(encoded(x));
      check_.expect(same(decoded(backwards), forwards),
                    "the order in which tokens are encoded matters");
      // A slot of a dropped token is written again after truncate.
      encode_token(in_basis(normals(3)), 5, backwards);
      encode_token(x, 5, backwards);
      check_.expect(same(decoded(backwards), forwards),
                    "a token written over another one is not the same as written first");
    }
    if constexpr (EncodesTokensAtOnce<C>) check_tokens_at_once(x);
    if constexpr (requires(std::byte * to) {
                    C::copy_token(context_, static_cast<const std::byte*>(to), 0, to, 0);
                  }) {
      const GuardedRecord from = encoded(in_basis(normals(4)));
      GuardedRecord to = encoded(x);
      const Values source = decoded(from), before = decoded(to);
      C::copy_token(context_, from.data(), 62, to.data(), 3);
      const Values after = decoded(to);
      check_.expect(changed_token(before, after, 3) < 0, "copy_token changes other tokens");
      bool exact = true;
      for (int c = 0; c < context_.width; ++c) {
        exact = exact && same_bits(after[index(3, c)], source[index(62, c)]);
      }
      check_.expect(exact, "copy_token does not move a token exactly");
      check_.expect(to.intact(), "copy_token writes outside the record");
    }
  }

  /// Tokens of a run, each encoded alone, over zeros and over ones.
  void check_tokens_at_once(const Values& x) {
    const int at_once = C::tokens_at_once(context_.side);
    const bool is_run = at_once >= 1 && at_once <= block_tokens && (at_once & (at_once - 1)) == 0;
    check_.expect(is_run, "tokens_at_once is no power of two from 1 to 64");
    if (!is_run) return;
    bool are_apart = true;
    for (int run = 0; run < block_tokens; run += at_once) {
      std::vector<int> writer(size_, -1);
      for (int token = run; token < run + at_once; ++token) {
        for (const int fill : {0, 0xff}) {
          GuardedRecord record(size_, fill);
          encode_token(x, token, record);
          for (std::size_t i = 0; i < size_; ++i) {
            if (record.data()[i] == static_cast<std::byte>(fill)) continue;
            are_apart = are_apart && (writer[i] < 0 || writer[i] == token);
            writer[i] = token;
          }
        }
      }
    }
    check_.expect(are_apart, "two tokens of a run of tokens_at_once write to the same byte");
  }

  /// Inputs at the edge of what append lets through: magnitudes up to 65504, then the basis.
  void check_edges() {
    const auto check = [&](const Values& x, const char* name) {
      const GuardedRecord record = encoded(in_basis(x));
      check_.expect(finite(decoded(record)), std::string(name) + " decode to infinity or NaN");
      check_.expect(record.intact(), std::string(name) + ": encoding writes outside the record");
    };
    const Values zeros(count(), 0.0f);
    check(zeros, "zeros");
    check_.expect(distance(decoded(encoded(in_basis(zeros))), zeros) == 0,
                  "zeros do not decode to zeros");
    check_.expect(finite(decoded(GuardedRecord(size_, 0))),
                  "zero bytes decode to infinity or NaN: attention reads places not yet written");
    check(Values(count(), -3.25f), "equal numbers");
    check(Values(count(), f16_max), "numbers of 65504");
    check(Values(count(), 1e-40f), "denormal numbers");
    Values mixed(count());
    for (const float size : {f16_max, 6e-8f, 1e-30f, 1e-40f}) {
      for (std::size_t i = 0; i < mixed.size(); ++i) {
        const std::size_t token = i / static_cast<std::size_t>(context_.width);
        mixed[i] = (i + token) % 2 == 0 ? size : -size;
      }
      check(mixed, "numbers of both signs and one magnitude");
    }
    Values outlier = normals(5);
    for (int t = 0; t < block_tokens; ++t) outlier[index(t, context_.width / 2)] = 40000.0f;
    check(outlier, "numbers with an outlier channel");
  }

  /// Kernels read blocks by the format that a codec declares, without its `decode`.
  void check_format(const Values& x) {
    const GuardedRecord record = encoded(x);
    for (int t = 0; t < block_tokens && check_.ok(); ++t) {
      for (int c = 0; c < context_.width; ++c) {
        if constexpr (PlainCodec<C>) {
          check_.expect(same_bits(read_plain(record.data(), t, c), decode(record, t, c)),
                        "plain_format is not what decode reads");
        }
        if constexpr (AffineCodec<C>) {
          const float wanted = decode(record, t, c), read = read_affine(record.data(), t, c);
          check_.expect(std::fabs(read - wanted) <= 1e-5f * (1.0f + std::fabs(wanted)),
                        "affine_format is not what decode reads");
        }
      }
    }
  }
  [[nodiscard]] float read_plain(const std::byte* record, int token, int channel) const {
    if constexpr (PlainCodec<C>) {
      const int at = context_.side == Side::key ? channel * block_tokens + token
                                                : token * context_.width + channel;
      if constexpr (C::plain_format == PlainFormat::f16) {
        return terse::detail::load_half(record, at);
      } else {
        return from_e4m3(static_cast<std::uint8_t>(record[at]));
      }
    }
    return 0.0f;
  }
  [[nodiscard]] float read_affine(const std::byte* record, int token, int channel) const {
    if constexpr (AffineCodec<C>) {
      constexpr AffineFormat f = C::affine_format;
      const Record r = C::record(context_.side, context_.width);
      const unsigned code = load_code<f.bits>(
          record, code_place<f.bits>(context_.side, context_.width, token, channel));
      const int i = affine_param_index(f, context_.width, token, channel);
      const float x = (static_cast<float>(code) - f.centre) *
                      terse::detail::load_half(record + r.sections[1].offset_bytes, i);
      if (!f.has_min) return x;
      return x + terse::detail::load_half(record + r.sections[2].offset_bytes, i);
    }
    return 0.0f;
  }

  void check_basis() {
    if constexpr (HasBasis<C>) {
      const Values x = normals(6), y = normals(7);
      const Values a = in_basis(x), b = in_basis(y);
      Values back = a;
      for (int t = 0; t < block_tokens; ++t) {
        from_basis<C>(context_, back.data() + t * context_.width);
      }
      const double size = distance(x, Values(count(), 0.0f));
      check_.expect(distance(back, x) <= 1e-5 * size, "from_basis does not invert to_basis");
      for (int t = 0; t < block_tokens && check_.ok(); ++t) {
        double before = 0, after = 0, norm = 0;
        for (int c = 0; c < context_.width; ++c) {
          before += double{x[index(t, c)]} * y[index(t, c)];
          after += double{a[index(t, c)]} * b[index(t, c)];
          norm += double{x[index(t, c)]} * x[index(t, c)] + double{y[index(t, c)]} * y[index(t, c)];
        }
        check_.expect(std::fabs(after - before) <= 1e-5 * norm,
                      "to_basis is not orthogonal: it changes products of vectors");
      }
    }
  }

  Checker& check_;
  CodecContext context_;
  std::size_t size_;
};

}  // namespace detail

/// Checks a codec of one side at one width: size and alignment of the record, finite results for
/// all finite inputs, nothing read or written outside, independence of tokens where promised,
/// exact moves, a declared format that is what decode reads, an orthogonal basis.
template <Codec C>
[[nodiscard]] Report check_codec(Side side, int width) {
  detail::Checker checker(std::string(side == Side::key ? "keys" : "values") + " of width " +
                          std::to_string(width));
  const Status supported = supports_width<C>(side, width);
  checker.expect(supported.ok(), supported.text);
  if (supported.ok()) detail::CodecCheck<C>(checker, side, width).run();
  return checker.report();
}

/// Checks a codec for keys, then for values.
template <Codec C>
[[nodiscard]] Report check_codec(int width) {
  Report keys = check_codec<C>(Side::key, width);
  if (!keys.ok()) return keys;
  Report values = check_codec<C>(Side::value, width);
  values.checks += keys.checks;
  return values;
}

}  // namespace testing
}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
