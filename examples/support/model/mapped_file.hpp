#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <vector>

namespace terse::examples {

/// The read-only bytes of a file, memory-mapped, or of a buffer that takes its place.
class MappedFile {
 public:
  MappedFile() = default;
  /// Maps `path`; throws InputError where it cannot be opened, is empty or is no regular file.
  explicit MappedFile(const std::string& path);
  explicit MappedFile(std::vector<std::byte> buffer);
  ~MappedFile();
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  [[nodiscard]] std::span<const std::byte> bytes() const;

 private:
  void* address_ = nullptr;
  std::size_t mapped_bytes_ = 0;
  std::vector<std::byte> buffer_;
};

}  // namespace terse::examples
