#pragma once

#include <string>
#include <string_view>

namespace terse::examples {

/// Text that a file holds, in quotes for an error message: a damaged file may claim any bytes and
/// any length, so what is not printable ASCII is shown as \xNN and the middle of a long text as
/// "...".
[[nodiscard]] std::string quoted(std::string_view text);

}  // namespace terse::examples
