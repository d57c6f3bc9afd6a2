#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

namespace terse::examples {

/// SHA-256 as in FIPS 180-4, fed in pieces.
class Sha256 {
 public:
  void update(std::span<const std::byte> bytes);
  void update(std::string_view text);

  /// The digest as 64 lower-case hexadecimal digits. Nothing may follow.
  [[nodiscard]] std::string finish();

 private:
  void absorb(const std::byte* block);

  std::array<std::uint32_t, 8> state_ = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                         0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
  std::array<std::byte, 64> pending_{};
  std::uint64_t total_bytes_ = 0;
};

[[nodiscard]] std::string sha256_of(std::string_view text);

/// The digest of a file's bytes; throws InputError when it cannot be read.
[[nodiscard]] std::string sha256_of_file(const std::string& path);

}  // namespace terse::examples
