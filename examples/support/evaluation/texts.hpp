#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "model/tokenizer.hpp"
#include "report/result_row.hpp"

namespace terse::examples {

/// Consecutive tokens of a text, and what a report says about them.
struct TextPart {
  std::vector<std::int32_t> tokens;
  TextInfo info;  ///< one range: all of `tokens`
};

/// Tokens [first, first + count) of what follows the first `skip_bytes` bytes of a file. Throws
/// InputError if the file cannot be read or is too short.
[[nodiscard]] TextPart read_text(const Tokenizer& tokenizer, const std::string& path,
                                 std::int64_t skip_bytes, std::int64_t first, std::int64_t count);

/// The first `windows` windows of `tokens` tokens each, one after another, of what follows the
/// first `skip_bytes` bytes of each file. Throws as read_text.
[[nodiscard]] std::vector<std::vector<std::int32_t>> read_windows(
    const Tokenizer& tokenizer, const std::vector<std::string>& paths, std::int64_t skip_bytes,
    int windows, int tokens);

/// The last part of a path.
[[nodiscard]] std::string file_name(const std::string& path);

}  // namespace terse::examples
