#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "dequantize.hpp"
#include "mapped_file.hpp"

namespace terse::examples {

/// One tensor of a GGUF file. Its bytes stay in the file's memory.
struct GgufTensor {
  std::string name;
  TensorType type = TensorType::f32;
  /// Extents, slowest first: a matrix is [row, column] and its rows are contiguous.
  std::vector<std::size_t> shape;
  std::size_t elements = 0;
  std::span<const std::byte> bytes;
};

/// An array of scalars in a GGUF file's metadata: all of one element type, not aligned.
struct GgufScalarArray {
  std::uint32_t element_type = 0;
  std::size_t count = 0;
  std::span<const std::byte> bytes;
};

using GgufValue = std::variant<std::uint64_t, std::int64_t, double, bool, std::string_view,
                               GgufScalarArray, std::vector<std::string_view>>;

/// A GGUF file (versions 2 and 3, little endian), memory-mapped and validated completely on
/// opening: magic, version, every length and offset against the file's size, names, alignment,
/// extents. A damaged, truncated or unsupported file is refused with an InputError; no length in
/// the file leads to an allocation larger than the file itself could justify.
class GgufFile {
 public:
  [[nodiscard]] static GgufFile open(const std::string& path);
  /// The same from memory; `name` stands for the path in error messages.
  [[nodiscard]] static GgufFile from_bytes(std::vector<std::byte> bytes, const std::string& name);

  [[nodiscard]] const std::string& path() const { return path_; }
  [[nodiscard]] const std::map<std::string, GgufTensor, std::less<>>& tensors() const {
    return tensors_;
  }
  /// Throws InputError where the file has no such tensor.
  [[nodiscard]] const GgufTensor& tensor(std::string_view name) const;
  [[nodiscard]] const GgufTensor* find_tensor(std::string_view name) const;

  /// Metadata by key. Each throws InputError where the key is missing (without a fallback) or its
  /// value has another type or does not fit.
  [[nodiscard]] bool has(std::string_view key) const { return values_.contains(key); }
  [[nodiscard]] int integer(std::string_view key, std::optional<int> fallback = {}) const;
  [[nodiscard]] float real(std::string_view key, std::optional<float> fallback = {}) const;
  [[nodiscard]] bool boolean(std::string_view key, std::optional<bool> fallback = {}) const;
  [[nodiscard]] std::string text(std::string_view key,
                                 std::optional<std::string> fallback = {}) const;
  /// The strings point into the file's memory.
  [[nodiscard]] const std::vector<std::string_view>& strings(std::string_view key) const;
  [[nodiscard]] std::vector<float> reals(std::string_view key) const;
  [[nodiscard]] std::vector<int> integers(std::string_view key) const;

 private:
  GgufFile() = default;
  void parse();
  [[nodiscard]] const GgufValue* find(std::string_view key) const;
  /// The value of type T at `key`; `kind` describes it in the refusal.
  template <typename T>
  [[nodiscard]] const T& held(std::string_view key, const char* kind) const;
  [[noreturn]] void refuse(const std::string& what) const;

  std::string path_;
  MappedFile file_;
  std::map<std::string, GgufValue, std::less<>> values_;
  std::map<std::string, GgufTensor, std::less<>> tensors_;
};

}  // namespace terse::examples
