#pragma once

#include <functional>
#include <string>

namespace terse::examples {

/// Runs `body` and gives the exit code of the program: 0, or 2 for an InputError, or 1 for any
/// other exception. Both leave one line on standard error that begins with `name`.
[[nodiscard]] int run_program(const std::string& name, const std::function<void()>& body);

}  // namespace terse::examples
