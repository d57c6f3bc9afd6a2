#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace terse_test {

/// Writes small GGUF files, sound or not, for the tests of what reads them.
class GgufBuilder {
 public:
  std::uint32_t version = 3;
  std::uint64_t alignment = 32;

  GgufBuilder& integer(std::string_view key, std::uint32_t value) {
    return add_value(key, 4, scalar(value));
  }
  GgufBuilder& real(std::string_view key, float value) { return add_value(key, 6, scalar(value)); }
  GgufBuilder& boolean(std::string_view key, bool value) {
    return add_value(key, 7, scalar(static_cast<std::uint8_t>(value)));
  }
  GgufBuilder& text(std::string_view key, std::string_view value) {
    return add_value(key, 8, prefixed(value));
  }
  GgufBuilder& texts(std::string_view key, const std::vector<std::string>& values) {
    std::string bytes = scalar(std::uint32_t{8}) + scalar(std::uint64_t{values.size()});
    for (const std::string& value : values) {
      bytes += prefixed(value);
    }
    return add_value(key, 9, bytes);
  }
  GgufBuilder& reals(std::string_view key, const std::vector<float>& values) {
    return add_value(key, 9, array(6, values));
  }
  GgufBuilder& integers(std::string_view key, const std::vector<std::int32_t>& values) {
    return add_value(key, 9, array(5, values));
  }
  /// A value of any type, its bytes as they are.
  GgufBuilder& add_value(std::string_view key, std::uint32_t type, const std::string& bytes) {
    values_ += prefixed(key) + scalar(type) + bytes;
    ++value_count_;
    return *this;
  }

  /// \param extents fastest first, as the format has them
  GgufBuilder& tensor(std::string_view name, const std::vector<std::uint64_t>& extents,
                      std::uint32_t type, const std::string& bytes) {
    data_.resize((data_.size() + alignment - 1) / alignment * alignment);
    return tensor_at(name, extents, type, data_.size(), bytes);
  }
  GgufBuilder& tensor(std::string_view name, const std::vector<std::uint64_t>& extents,
                      const std::vector<float>& values) {
    return tensor(name, extents, 0, raw(values));
  }
  /// A tensor that claims to lie at `offset`; its bytes are appended to the data as they are.
  GgufBuilder& tensor_at(std::string_view name, const std::vector<std::uint64_t>& extents,
                         std::uint32_t type, std::uint64_t offset, const std::string& bytes) {
    entries_ += prefixed(name) + scalar(static_cast<std::uint32_t>(extents.size())) + raw(extents) +
                scalar(type) + scalar(offset);
    data_ += bytes;
    ++tensor_count_;
    return *this;
  }

  [[nodiscard]] std::vector<std::byte> build() const {
    std::string file("GGUF");
    for (const std::string& part :
         {scalar(version), scalar(tensor_count_), scalar(value_count_), values_, entries_}) {
      file += part;
    }
    file.resize((file.size() + alignment - 1) / alignment * alignment);
    file += data_;
    std::vector<std::byte> bytes(file.size());
    std::memcpy(bytes.data(), file.data(), file.size());
    return bytes;
  }

  template <typename T>
  [[nodiscard]] static std::string scalar(T value) {
    return raw(std::vector<T>{value});
  }
  [[nodiscard]] static std::string prefixed(std::string_view text) {
    return scalar(std::uint64_t{text.size()}) + std::string(text);
  }
  template <typename T>
  [[nodiscard]] static std::string raw(const std::vector<T>& values) {
    std::string bytes(values.size() * sizeof(T), '\0');
    if (!values.empty()) {
      std::memcpy(bytes.data(), values.data(), bytes.size());
    }
    return bytes;
  }
  template <typename T>
  [[nodiscard]] static std::string array(std::uint32_t type, const std::vector<T>& values) {
    return scalar(type) + scalar(std::uint64_t{values.size()}) + raw(values);
  }

 private:
  std::string values_;
  std::string entries_;
  std::string data_;
  std::uint64_t value_count_ = 0;
  std::uint64_t tensor_count_ = 0;
};

}  // namespace terse_test
