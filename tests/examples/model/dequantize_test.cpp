#include "dequantize.hpp"

#include <array>
#include <cmath>
#include <cstdint>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

#include "gguf_builder.hpp"
#include "half.hpp"
#include "support/catch.hpp"

using namespace terse::examples;
using terse_test::GgufBuilder;

namespace {

std::vector<float> decoded(TensorType type, const std::string& bytes, std::size_t elements) {
  std::vector<float> values(elements);
  dequantize(type, std::as_bytes(std::span(bytes)), values);
  return values;
}

std::string half(float value) { return GgufBuilder::scalar(float_to_half(value)); }

}  // namespace

TEST_CASE("binary16 converts both ways") {
  CHECK(half_to_float(0x3c00) == 1.0f);
  CHECK(half_to_float(0xc000) == -2.0f);
  CHECK(half_to_float(0x7bff) == 65504.0f);
  CHECK(half_to_float(0x0001) == 0x1p-24f);
  CHECK(half_to_float(0x03ff) == 1023 * 0x1p-24f);
  CHECK(half_to_float(0x7c00) == std::numeric_limits<float>::infinity());
  CHECK(std::signbit(half_to_float(0x8000)));
  CHECK(std::isnan(half_to_float(0x7e00)));
  bool all_return = true;
  for (std::uint32_t bits = 0; bits < 0x10000; ++bits) {
    const auto pattern = static_cast<std::uint16_t>(bits);
    const float value = half_to_float(pattern);
    all_return = all_return && (std::isnan(value) || float_to_half(value) == pattern);
  }
  CHECK(all_return);
}

TEST_CASE("binary16 rounds to the nearest, ties to even") {
  CHECK(float_to_half(1.0f + 0x1p-11f) == 0x3c00);
  CHECK(float_to_half(1.0f + 3 * 0x1p-11f) == 0x3c02);
  CHECK(float_to_half(1.0f + 0x1p-11f + 0x1p-20f) == 0x3c01);
  CHECK(float_to_half(65519.0f) == 0x7bff);
  CHECK(float_to_half(65520.0f) == 0x7c00);
  CHECK(float_to_half(0x1p-25f) == 0);
  CHECK(float_to_half(1.5f * 0x1p-24f) == 2);
  CHECK(float_to_half(0x1p-14f - 0x1p-26f) == 0x0400);
  CHECK(float_to_half(-0.0f) == 0x8000);
  CHECK(float_to_half(1e30f) == 0x7c00);
  CHECK(std::isnan(half_to_float(float_to_half(std::numeric_limits<float>::quiet_NaN()))));
}

TEST_CASE("plain formats decode exactly") {
  const std::vector<float> values = {0.0f, -1.5f, 3.25f};
  CHECK(decoded(TensorType::f32, GgufBuilder::raw(values), 3) == values);
  CHECK(decoded(TensorType::f16, half(0.0f) + half(-1.5f) + half(3.25f), 3) == values);
  const std::vector<std::uint16_t> upper_halves = {0x0000, 0xbfc0, 0x4050};
  CHECK(decoded(TensorType::bf16, GgufBuilder::raw(upper_halves), 3) == values);
}

TEST_CASE("blocks of 32 decode code by code") {
  // Nibble i of the low halves, then of the high halves, counts up and down.
  std::string nibbles;
  for (int i = 0; i < 16; ++i) {
    nibbles += static_cast<char>(i | ((15 - i) << 4));
  }
  const auto q4_0 = decoded(TensorType::q4_0, half(0.5f) + nibbles + half(2.0f) + nibbles, 64);
  const auto q4_1 = decoded(TensorType::q4_1, half(0.5f) + half(-1.0f) + nibbles, 32);
  std::string codes;
  for (int i = 0; i < 32; ++i) {
    codes += static_cast<char>(i * 8 - 128);
  }
  const auto q8_0 = decoded(TensorType::q8_0, half(0.25f) + codes, 32);
  for (int i = 0; i < 32; ++i) {
    const auto element = static_cast<std::size_t>(i);
    const int code = i < 16 ? i : 31 - i;
    CHECK(q4_0[element] == 0.5f * static_cast<float>(code - 8));
    CHECK(q4_0[element + 32] == 2.0f * static_cast<float>(code - 8));
    CHECK(q4_1[element] == 0.5f * static_cast<float>(code) - 1.0f);
    CHECK(q8_0[element] == 0.25f * static_cast<float>(i * 8 - 128));
  }
}

TEST_CASE("blocks of q6_k decode code by code") {
  // Codes and scales are set element by element, from the format's description.
  std::string block(210, '\0');
  std::array<int, 256> codes;
  const auto or_into = [&block](std::size_t at, int bits) {
    block[at] = static_cast<char>(static_cast<unsigned char>(block[at]) | bits);
  };
  for (std::size_t element = 0; element < 256; ++element) {
    const int code = static_cast<int>(element * 37 % 64);
    codes[element] = code;
    const std::size_t half_block = element / 128;
    const std::size_t in_half = element % 128;
    or_into(64 * half_block + in_half % 64, (code & 15) << (in_half < 64 ? 0 : 4));
    or_into(128 + 32 * half_block + in_half % 32, (code >> 4) << (2 * (in_half / 32)));
  }
  for (std::size_t i = 0; i < 16; ++i) {
    block[192 + i] = static_cast<char>(static_cast<int>(i) * 3 - 20);
  }
  block.replace(208, 2, half(0.125f));
  const std::vector<float> values = decoded(TensorType::q6_k, block, 256);
  for (std::size_t element = 0; element < 256; ++element) {
    const int scale = static_cast<int>(element / 16) * 3 - 20;
    CHECK(values[element] == 0.125f * static_cast<float>(scale * (codes[element] - 32)));
  }
}

TEST_CASE("sizes that are not those of whole blocks are refused") {
  std::vector<float> values(32);
  const std::vector<std::byte> bytes(34);
  const std::span<const std::byte> all(bytes);
  CHECK_THROWS_AS(dequantize(TensorType::q8_0, all.first(33), values), std::invalid_argument);
  CHECK_THROWS_AS(dequantize(TensorType::q8_0, all, std::span(values).first(31)),
                  std::invalid_argument);
}

TEST_CASE("formats are known by name") {
  CHECK(tensor_type_name(3) == "Q4_1");
  CHECK(tensor_type_name(12) == "Q4_K");
  CHECK(tensor_type_name(4) == "type 4");
  CHECK(supported_tensor_type(3) == TensorType::q4_1);
  CHECK(!supported_tensor_type(12).has_value());
}
