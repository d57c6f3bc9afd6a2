#include "gguf.hpp"

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "gguf_builder.hpp"
#include "refusal.hpp"
#include "support/catch.hpp"

using namespace terse::examples;
using terse_test::contains;
using terse_test::GgufBuilder;
using terse_test::refusal_of;

namespace {

GgufBuilder sample() {
  GgufBuilder builder;
  builder.text("a.text", "words")
      .integer("an.integer", 7)
      .real("a.real", 0.5f)
      .boolean("a.flag", true)
      .texts("some.texts", {"one", "", "three"})
      .reals("some.reals", {1.0f, -2.0f})
      .integers("some.integers", {3, -4})
      .tensor("matrix", {3, 2}, {1, 2, 3, 4, 5, 6})
      .tensor("q8", {32}, 8, std::string(34, '\0'));
  return builder;
}

std::string refusal(const GgufBuilder& builder) {
  return refusal_of([&] { static_cast<void>(GgufFile::from_bytes(builder.build(), "file")); });
}

std::string refusal(std::vector<std::byte> bytes) {
  return refusal_of([&] { static_cast<void>(GgufFile::from_bytes(std::move(bytes), "file")); });
}

}  // namespace

TEST_CASE("a sound GGUF file is read") {
  for (const std::uint32_t version : {2u, 3u}) {
    GgufBuilder builder = sample();
    builder.version = version;
    const GgufFile file = GgufFile::from_bytes(builder.build(), "file");
    CHECK(file.text("a.text") == "words");
    CHECK(file.integer("an.integer") == 7);
    CHECK(file.real("a.real") == 0.5f);
    CHECK(file.boolean("a.flag"));
    CHECK(file.strings("some.texts") == std::vector<std::string_view>{"one", "", "three"});
    CHECK(file.reals("some.reals") == std::vector<float>{1.0f, -2.0f});
    CHECK(file.integers("some.integers") == std::vector<int>{3, -4});
    const GgufTensor& tensor = file.tensor("matrix");
    CHECK(tensor.shape == std::vector<std::size_t>{2, 3});
    CHECK(tensor.elements == 6);
    std::vector<float> values(6);
    dequantize(tensor.type, tensor.bytes, values);
    CHECK(values == std::vector<float>{1, 2, 3, 4, 5, 6});
    CHECK(file.tensor("q8").bytes.size() == 34);
    CHECK(file.find_tensor("other") == nullptr);
  }
}

TEST_CASE("metadata that is missing or of another type is named") {
  const GgufFile file = GgufFile::from_bytes(sample().build(), "file");
  CHECK(file.integer("missing", 5) == 5);
  CHECK(file.text("missing", "else") == "else");
  CHECK(contains(refusal_of([&] { static_cast<void>(file.integer("missing")); }), "missing"));
  CHECK(contains(refusal_of([&] { static_cast<void>(file.integer("a.text", 5)); }), "a.text"));
  CHECK(contains(refusal_of([&] { static_cast<void>(file.real("an.integer", 5)); }), "an.integer"));
  CHECK(contains(refusal_of([&] { static_cast<void>(file.boolean("a.text")); }), "a.text"));
  GgufBuilder builder;
  builder.real("infinite", std::numeric_limits<float>::infinity()).integer("large", 0x80000000u);
  const GgufFile odd = GgufFile::from_bytes(builder.build(), "file");
  CHECK(contains(refusal_of([&] { static_cast<void>(odd.real("infinite")); }), "not finite"));
  CHECK(contains(refusal_of([&] { static_cast<void>(odd.integer("large")); }), "large"));
  CHECK(contains(refusal_of([&] { static_cast<void>(file.strings("a.text")); }), "a.text"));
  CHECK(contains(refusal_of([&] { static_cast<void>(file.reals("some.integers")); }), "integers"));
  CHECK(contains(refusal_of([&] { static_cast<void>(file.integers("some.reals")); }), "reals"));
  CHECK(contains(refusal_of([&] { static_cast<void>(file.tensor("other")); }), "other"));
}

TEST_CASE("a GGUF file cut short anywhere is refused") {
  const std::vector<std::byte> whole = sample().build();
  for (std::size_t length = 0; length < whole.size(); ++length) {
    INFO(length);
    CHECK(!refusal(std::vector<std::byte>(whole.begin(), whole.begin() + std::ptrdiff_t(length)))
               .empty());
  }
  CHECK(refusal(whole).empty());
}

TEST_CASE("a GGUF file with changed bytes is read or refused, never worse") {
  const std::vector<std::byte> whole = sample().build();
  std::mt19937 random(1);
  int refused = 0;
  for (int trial = 0; trial < 20000; ++trial) {
    std::vector<std::byte> damaged = whole;
    for (int i = 0; i <= trial % 3; ++i) {
      damaged[random() % damaged.size()] = static_cast<std::byte>(random() % 256);
    }
    refused += !refusal(std::move(damaged)).empty();
  }
  CHECK(refused > 1000);
}

TEST_CASE("what a GGUF file claims is checked") {
  constexpr std::uint64_t huge = std::numeric_limits<std::uint64_t>::max();
  GgufBuilder builder = sample();

  SECTION("magic number") {
    std::vector<std::byte> bytes = builder.build();
    bytes[0] = std::byte{'X'};
    CHECK(contains(refusal(bytes), "not a GGUF file"));
  }
  SECTION("version") {
    builder.version = 4;
    CHECK(contains(refusal(builder), "version 4"));
    builder.version = 0x03000000;
    CHECK(contains(refusal(builder), "big-endian"));
  }
  SECTION("counts") {
    for (const std::size_t position : {std::size_t{8}, std::size_t{16}}) {
      for (const std::uint64_t count : {huge, huge / 13, std::uint64_t{1} << 32}) {
        std::vector<std::byte> bytes = builder.build();
        std::memcpy(bytes.data() + position, &count, sizeof count);
        CHECK(contains(refusal(bytes), "more than the file can hold"));
      }
    }
  }
  SECTION("array lengths") {
    for (const std::uint32_t type : {0u, 4u, 8u, 12u}) {
      GgufBuilder other = builder;
      other.add_value("array", 9, GgufBuilder::scalar(type) + GgufBuilder::scalar(huge / 2));
      CHECK(contains(refusal(other), "more than the file can hold"));
    }
  }
  SECTION("text lengths") {
    builder.add_value("text", 8, GgufBuilder::scalar(huge));
    CHECK(contains(refusal(builder), "ends within"));
  }
  SECTION("value types") {
    GgufBuilder nested = builder;
    nested.add_value("array", 9, GgufBuilder::scalar(9u) + GgufBuilder::scalar(std::uint64_t{0}));
    CHECK(contains(refusal(nested), "\"array\""));
    builder.add_value("odd", 13, "");
    CHECK(contains(refusal(builder), "\"odd\""));
  }
  SECTION("names and keys that are too long") {
    GgufBuilder other = builder;
    const std::string name(64, 'n');
    CHECK(refusal(other.tensor(name, {1}, {1.0f})).empty());
    const std::string refused = refusal(other.tensor(name + "n", {1}, {1.0f}));
    CHECK(contains(refused, "65 bytes; the format allows 64"));
    GgufBuilder key = builder;
    CHECK(refusal(key.integer(std::string(65535, 'k'), 1)).empty());
    const std::string long_key = refusal(key.integer(std::string(65536, 'k'), 1));
    CHECK(contains(long_key, "65536 bytes"));
    CHECK(long_key.size() < 300);
  }
  SECTION("names and keys of any bytes are shown as text") {
    const std::string odd("a\0\n\x1b[2J\xff", 8);
    GgufBuilder twice = builder;
    const std::string shown = "\"a\\x00\\x0a\\x1b[2J\\xff\"";
    CHECK(contains(refusal(twice.integer(odd, 1).integer(odd, 1)), shown + " occurs twice"));
    GgufBuilder value = builder;
    CHECK(contains(refusal(value.add_value(odd, 13, "")), shown + " has unknown type"));
    CHECK(contains(refusal(builder.tensor(odd, {4, 0}, std::vector<float>{})), shown));
    const std::string middle =
        refusal(GgufBuilder().add_value("first" + std::string(1000, 'x') + "last", 13, ""));
    CHECK(contains(middle, "\"firstxxx"));
    CHECK(contains(middle, "xxx...xxx"));
    CHECK(contains(middle, "xlast\""));
    CHECK(middle.size() < 200);
  }
  SECTION("keys and names that occur twice") {
    GgufBuilder other = builder;
    CHECK(contains(refusal(other.integer("a.text", 1)), "\"a.text\" occurs twice"));
    CHECK(contains(refusal(builder.tensor("q8", {1}, {1.0f})), "\"q8\" occurs twice"));
  }
  SECTION("dimensions") {
    GgufBuilder none = builder;
    CHECK(contains(refusal(none.tensor("t", {}, std::vector<float>{})), "0 dimensions"));
    GgufBuilder five = builder;
    CHECK(contains(refusal(five.tensor("t", {1, 1, 1, 1, 1}, {1.0f})), "5 dimensions"));
    GgufBuilder zero = builder;
    CHECK(contains(refusal(zero.tensor("t", {4, 0}, std::vector<float>{})), "extent of 0"));
    const std::uint64_t half = std::uint64_t{1} << 32;
    GgufBuilder product = builder;
    CHECK(contains(refusal(product.tensor("t", {half, half}, {1.0f})), "extent"));
    CHECK(contains(refusal(builder.tensor("t", {huge}, {1.0f})), "extent"));
  }
  SECTION("formats") {
    GgufBuilder known = builder;
    const std::string refused = refusal(known.tensor("odd", {256}, 12, std::string(144, '\0')));
    CHECK(contains(refused, "\"odd\""));
    CHECK(contains(refused, "Q4_K"));
    GgufBuilder unknown = builder;
    CHECK(contains(refusal(unknown.tensor("odd", {32}, 999, "")), "type 999"));
    CHECK(contains(refusal(builder.tensor("odd", {48}, 8, std::string(51, '\0'))), "multiple"));
  }
  SECTION("places of tensors") {
    GgufBuilder odd = builder;
    CHECK(contains(refusal(odd.tensor_at("t", {1}, 0, 8, "1234")), "not aligned"));
    GgufBuilder far = builder;
    CHECK(contains(refusal(far.tensor_at("t", {1}, 0, huge - 31, "1234")), "past the end"));
    CHECK(contains(refusal(builder.tensor_at("t", {1u << 20}, 0, 0, "")), "past the end"));
  }
  SECTION("alignment") {
    for (const std::uint32_t alignment : {0u, 4u, 24u, 1u << 21}) {
      GgufBuilder other = builder;
      CHECK(contains(refusal(other.integer("general.alignment", alignment)), "power of two"));
    }
    GgufBuilder wide;
    wide.alignment = 64;
    wide.integer("general.alignment", 64).tensor("a", {1}, {1.0f}).tensor("b", {1}, {2.0f});
    const GgufFile file = GgufFile::from_bytes(wide.build(), "file");
    std::vector<float> value(1);
    dequantize(TensorType::f32, file.tensor("b").bytes, value);
    CHECK(value[0] == 2.0f);
  }
}

TEST_CASE("files that cannot be mapped are refused by name") {
  const std::filesystem::path folder = std::filesystem::temp_directory_path();
  const auto open = [](const std::filesystem::path& path) {
    return refusal_of([&] { static_cast<void>(GgufFile::open(path.string())); });
  };
  CHECK(contains(open(folder / "no-such-file.gguf"), "no-such-file.gguf"));
  CHECK(contains(open(folder), "not a regular file"));

  // Another run of this test may use the folder at the same time.
  const std::filesystem::path path =
      folder / ("terse_gguf_test_" + std::to_string(std::random_device{}()) + ".gguf");
  std::ofstream(path).close();
  CHECK(contains(open(path), "empty"));
  const std::vector<std::byte> bytes = sample().build();
  std::ofstream(path, std::ios::binary)
      .write(reinterpret_cast<const char*>(bytes.data()), std::streamsize(bytes.size()));
  CHECK(open(path).empty());
  std::filesystem::remove(path);
}
