// Kernels that read packed codes, against a double-precision sum over what the codec decodes.
#include <cmath>
#include <cstring>
#include <vector>

#include "terse/cpu/block_reader.hpp"
#include "terse/quant/int4_rotated.hpp"
#include "terse/quant/int8.hpp"
#include "terse/quant/kivi.hpp"
#include "terse/quant/nvfp4.hpp"
#include "terse/quant/q4_0.hpp"
#include "terse/quant/q8_0.hpp"
#include "terse/quant/turboquant.hpp"

#include "tests/cpu/kernel_inputs.hpp"
#include "tests/support/catch.hpp"

using namespace terse_test;
using terse::AffineGroup;
using terse::AffineSpec;
using terse::block_tokens;
using terse::Granularity;
using terse::ScaleRule;
using terse::Side;

namespace {

constexpr int widths[] = {16, 32, 36, 48, 64, 70, 80, 96, 128, 144, 160, 192, 256, 576};
constexpr int row_counts[] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 64};

/// Largest error of an element. Queries and probabilities may keep 19 bits beside 4-bit codes.
constexpr double tolerance(const terse::AffineFormat& format) {
  return format.bits == 4 ? 8e-6 : 2e-6;
}

/// Bytes that no kernel may touch, on both sides of an output.
template <class T>
struct Guarded {
  static constexpr std::size_t margin = 64;
  std::vector<T> all;
  Guarded(std::size_t size, T fill) : all(size + 2 * margin, fill) {}
  T* data() { return all.data() + margin; }
  bool intact(T fill) const {
    for (std::size_t i = 0; i < margin; ++i) {
      if (all[i] != fill || all[all.size() - 1 - i] != fill) return false;
    }
    return true;
  }
};

struct EncodedBlock {
  std::vector<std::byte> storage;
  std::vector<double> decoded;  // [token, channel]
  const std::byte* record = nullptr;
};

template <class Codec>
EncodedBlock encode(Side side, int width, Shape shape, std::uint64_t seed) {
  const terse::CodecContext context{side, width};
  const std::vector<float> x = make_matrix(shape, block_tokens, width, seed);
  EncodedBlock block;
  const std::size_t bytes = Codec::record(side, width).bytes;
  // Padding bytes of a record may hold anything: kernels must not read a meaning into them.
  block.storage.assign(bytes + 128, std::byte{0xff});
  std::byte* record = block.storage.data();
  while (reinterpret_cast<std::uintptr_t>(record) % 128 != 0) ++record;
  terse::encode_block<Codec>(context, x.data(), record);
  block.record = record;
  for (int t = 0; t < block_tokens; ++t) {
    for (int c = 0; c < width; ++c) {
      block.decoded.push_back(static_cast<double>(Codec::decode(context, record, t, c)));
    }
  }
  return block;
}

template <class Codec>
void check_scores(const terse::cpu::KernelTable& table, int width, Shape shape, int rows) {
  const terse::AffineFormat& format = Codec::affine_format;
  const auto seed = static_cast<std::uint64_t>(width * 100 + rows);
  const EncodedBlock block = encode<Codec>(Side::key, width, shape, seed);
  const std::vector<float> queries = make_matrix(
      shape == Shape::outliers ? Shape::outliers : Shape::normal, rows, width, seed + 1);
  const std::size_t bytes = table.prepared_bytes(format, rows, width);
  REQUIRE(bytes % 64 == 0);
  std::vector<std::byte> prepared(bytes + 64, std::byte{0x55});
  std::byte* aligned = prepared.data();
  while (reinterpret_cast<std::uintptr_t>(aligned) % 64 != 0) ++aligned;
  table.prepare_queries(format, queries.data(), rows, width, aligned);
  Guarded<float> scores(static_cast<std::size_t>(rows * block_tokens), 12345.0f);
  table.scores_affine(format, width, block.record, queries.data(), aligned, rows, scores.data(),
                      (width + rows) % 2 == 0 ? nullptr : block.record);
  std::vector<double> wanted, size;
  for (int r = 0; r < rows; ++r) {
    for (int t = 0; t < block_tokens; ++t) {
      double sum = 0.0, squares = 0.0;
      for (int c = 0; c < width; ++c) {
        const double term = static_cast<double>(queries[static_cast<std::size_t>(r * width + c)]) *
                            block.decoded[static_cast<std::size_t>(t * width + c)];
        sum += term;
        squares += term * term;
      }
      wanted.push_back(sum);
      size.push_back(std::sqrt(squares) + std::fabs(sum));
    }
  }
  INFO("width " << width << ", rows " << rows << ", shape " << static_cast<int>(shape));
  CHECK(relative_error(wanted, scores.data(), size) < tolerance(format));
  CHECK(scores.intact(12345.0f));
}

template <class Codec>
void check_values(const terse::cpu::KernelTable& table, int width, Shape shape, int rows) {
  const terse::AffineFormat& format = Codec::affine_format;
  const auto seed = static_cast<std::uint64_t>(width * 100 + rows + 7);
  const EncodedBlock block = encode<Codec>(Side::value, width, shape, seed);
  std::vector<float> p = make_matrix(Shape::normal, rows, block_tokens, seed + 1);
  for (float& x : p) x = std::exp(2.0f * x - 6.0f);
  for (int t = 0; t < block_tokens; t += 3) p[static_cast<std::size_t>(t)] = 0.0f;
  const auto count = static_cast<std::size_t>(rows * width);
  Guarded<float> sums(count, 12345.0f);
  for (std::size_t i = 0; i < count; ++i) sums.data()[i] = 0.5f;
  table.values_affine(format, width, block.record, p.data(), rows, sums.data(),
                      (width + rows) % 2 == 0 ? nullptr : block.record);
  std::vector<double> wanted, size;
  for (int r = 0; r < rows; ++r) {
    for (int c = 0; c < width; ++c) {
      double sum = 0.5, squares = 0.25;
      for (int t = 0; t < block_tokens; ++t) {
        const double term = static_cast<double>(p[static_cast<std::size_t>(r * block_tokens + t)]) *
                            block.decoded[static_cast<std::size_t>(t * width + c)];
        sum += term;
        squares += term * term;
      }
      wanted.push_back(sum);
      size.push_back(std::sqrt(squares) + std::fabs(sum));
    }
  }
  INFO("width " << width << ", rows " << rows << ", shape " << static_cast<int>(shape));
  CHECK(relative_error(wanted, sums.data(), size) < tolerance(format));
  CHECK(sums.intact(12345.0f));
}

/// `decode(record, out)` writes what the codec decodes, and nothing else.
template <class Decode>
void check_decoded(const EncodedBlock& block, Side side, int width, Decode decode) {
  const auto count = static_cast<std::size_t>(block_tokens * width);
  Guarded<float> out(count, 12345.0f);
  decode(block.record, out.data());
  int differences = 0;
  for (int t = 0; t < block_tokens; ++t) {
    for (int c = 0; c < width; ++c) {
      const int at = side == Side::key ? c * block_tokens + t : t * width + c;
      const double wanted = block.decoded[static_cast<std::size_t>(t * width + c)];
      if (static_cast<double>(out.data()[at]) != wanted) ++differences;
    }
  }
  INFO("width " << width << ", side " << static_cast<int>(side));
  CHECK(differences == 0);
  CHECK(out.intact(12345.0f));
}

template <class Codec>
void check_decode(const terse::cpu::KernelTable& table, Side side, int width) {
  check_decoded(encode<Codec>(side, width, Shape::outliers, static_cast<std::uint64_t>(width)),
                side, width, [&](const std::byte* record, float* out) {
                  table.decode_affine(Codec::affine_format, side, width, record, out);
                });
}

/// Few shapes at each width, every shape at some width: all pairs would take minutes.
template <class Codec>
void check_keys() {
  for (const terse::cpu::KernelTable* table : available_tables()) {
    INFO(table->name);
    int turn = 0;
    for (const int width : widths) {
      check_decode<Codec>(*table, Side::key, width);
      for (const Shape shape : all_shapes) {
        check_scores<Codec>(*table, width, shape, row_counts[turn++ % 10]);
      }
    }
    for (const int rows : row_counts) {
      check_scores<Codec>(*table, 64, Shape::normal, rows);
      check_scores<Codec>(*table, 80, Shape::outliers, rows);
    }
  }
}

template <class Codec>
void check_values_side() {
  for (const terse::cpu::KernelTable* table : available_tables()) {
    INFO(table->name);
    int turn = 0;
    for (const int width : widths) {
      check_decode<Codec>(*table, Side::value, width);
      for (const Shape shape : all_shapes) {
        check_values<Codec>(*table, width, shape, row_counts[turn++ % 10]);
      }
    }
    for (const int rows : row_counts) {
      check_values<Codec>(*table, 64, Shape::normal, rows);
      check_values<Codec>(*table, 80, Shape::outliers, rows);
    }
  }
}

template <int Bits, int Group, ScaleRule Rule>
using PerChannel = AffineGroup<AffineSpec{
    .bits = Bits, .granularity = Granularity::per_channel, .group = Group, .rule = Rule}>;
template <int Bits, int Group, ScaleRule Rule>
using PerToken = AffineGroup<AffineSpec{.bits = Bits, .group = Group, .rule = Rule}>;

template <class Codec>
constexpr int most_channels() {
  if constexpr (terse::TrellisCodec<Codec>) return Codec::max_width;
  return 4096;
}

/// Through the reader of blocks: every scale of a group, and the levels of a table or a trellis.
template <class Codec>
void check_levels() {
  for (const terse::cpu::KernelTable* table : available_tables()) {
    for (const Side side : {Side::key, Side::value}) {
      for (const int width : widths) {
        if (width > most_channels<Codec>()) continue;
        INFO(table->name << ", width " << width << ", side " << static_cast<int>(side));
        check_decoded(encode<Codec>(side, width, Shape::outliers, 9), side, width,
                      [&](const std::byte* record, float* out) {
                        terse::cpu::BlockReader<Codec>::decode(
                            *table, terse::CodecContext{side, width}, record, out);
                      });
      }
    }
  }
}

}  // namespace

TEST_CASE("levels of a table, 2, 3 and 4 bits, a factor per token or 16 channels") {
  check_levels<terse::TurboQuant2>();
  check_levels<terse::TurboQuant3>();
  check_levels<terse::TurboQuant4>();
  check_levels<terse::NvFp4>();
}

TEST_CASE("levels of a trellis, 1 to 4 bits") {
  check_levels<terse::ShapedTrellis<terse::ShapedTrellisSpec{.bits = 1}>>();
  check_levels<terse::ShapedTrellis<terse::ShapedTrellisSpec{.bits = 2}>>();
  check_levels<terse::ShapedTrellis<terse::ShapedTrellisSpec{.bits = 3}>>();
  check_levels<terse::ShapedTrellis<terse::ShapedTrellisSpec{.bits = 4}>>();
}

TEST_CASE("one factor per token: int8 and int4, keys and values") {
  check_keys<terse::Int8>();
  check_keys<terse::Int4Rotated>();
  check_values_side<terse::Int8>();
  check_values_side<terse::Int4Rotated>();
}

TEST_CASE("a factor per 32 channels: q8_0 and q4_0, keys and values") {
  check_keys<terse::Q8_0Plain>();
  check_keys<terse::Q4_0Plain>();
  check_values_side<terse::Q8_0Plain>();
  check_values_side<terse::Q4_0Plain>();
}

TEST_CASE("KIVI keys and values, 2, 3 and 4 bits") {
  check_keys<terse::Kivi2::key_codec>();
  check_keys<terse::Kivi3::key_codec>();
  check_keys<terse::Kivi4::key_codec>();
  check_values_side<terse::Kivi2::value_codec>();
  check_values_side<terse::Kivi3::value_codec>();
  check_values_side<terse::Kivi4::value_codec>();
}

TEST_CASE("other group sizes, and groups that no vector aligns with") {
  check_keys<PerChannel<2, 16, ScaleRule::min_max>>();
  check_keys<PerChannel<4, 64, ScaleRule::abs_max>>();
  check_keys<PerChannel<8, 16, ScaleRule::abs_max>>();
  check_keys<PerChannel<2, 8, ScaleRule::min_max>>();
  check_keys<PerChannel<3, 16, ScaleRule::abs_max>>();
  check_keys<PerChannel<3, 64, ScaleRule::min_max>>();
  check_keys<PerToken<2, 0, ScaleRule::least_squares>>();
  check_keys<PerToken<3, 0, ScaleRule::least_squares>>();
  check_keys<PerToken<3, 48, ScaleRule::min_max>>();
  check_keys<PerToken<4, 6, ScaleRule::min_max>>();
  check_keys<PerToken<8, 128, ScaleRule::min_max>>();
  check_values_side<PerToken<1, 0, ScaleRule::least_squares>>();
  check_values_side<PerToken<1, 48, ScaleRule::least_squares>>();
  check_values_side<PerToken<1, 20, ScaleRule::least_squares>>();
  check_values_side<PerToken<2, 0, ScaleRule::abs_max>>();
  check_values_side<PerToken<3, 0, ScaleRule::least_squares>>();
  check_values_side<PerToken<3, 16, ScaleRule::signed_max_wide>>();
  check_values_side<PerToken<3, 48, ScaleRule::min_max>>();
  check_values_side<PerToken<3, 20, ScaleRule::min_max>>();
  check_values_side<PerChannel<3, 32, ScaleRule::min_max>>();
  check_values_side<PerToken<4, 16, ScaleRule::min_max>>();
  check_values_side<PerToken<8, 20, ScaleRule::min_max>>();
  check_values_side<PerToken<8, 64, ScaleRule::min_max>>();
  check_values_side<PerChannel<4, 32, ScaleRule::min_max>>();
}

TEST_CASE("a row's result does not depend on the rows beside it") {
  constexpr int width = 80;
  const auto& format = terse::Kivi2::value_codec::affine_format;
  const EncodedBlock block =
      encode<terse::Kivi2::value_codec>(Side::value, width, Shape::normal, 3);
  const std::vector<float> p = make_matrix(Shape::one_sign, 7, block_tokens, 4);
  for (const terse::cpu::KernelTable* table : available_tables()) {
    INFO(table->name);
    std::vector<float> together(7 * width, 0.0f), alone(7 * width, 0.0f);
    table->values_affine(format, width, block.record, p.data(), 7, together.data(), nullptr);
    for (int r = 0; r < 7; ++r) {
      table->values_affine(format, width, block.record, p.data() + r * block_tokens, 1,
                           alone.data() + r * width, nullptr);
    }
    CHECK(std::memcmp(together.data(), alone.data(), sizeof(float) * together.size()) == 0);
  }
}

TEST_CASE("queries that are not finite never yield finite scores") {
  constexpr int width = 64;
  const auto& format = terse::Int4Rotated::affine_format;
  const EncodedBlock block = encode<terse::Int4Rotated>(Side::key, width, Shape::normal, 5);
  for (const terse::cpu::KernelTable* table : available_tables()) {
    for (const float bad : {std::nanf(""), HUGE_VALF}) {
      INFO(table->name << ", " << bad);
      std::vector<float> queries = make_matrix(Shape::normal, 1, width, 6);
      queries[9] = bad;
      alignas(64) std::byte prepared[4096];
      REQUIRE(table->prepared_bytes(format, 1, width) <= sizeof prepared);
      table->prepare_queries(format, queries.data(), 1, width, prepared);
      float scores[block_tokens];
      table->scores_affine(format, width, block.record, queries.data(), prepared, 1, scores,
                           nullptr);
      for (const float s : scores) CHECK_FALSE(terse::is_finite(s));
    }
  }
}
