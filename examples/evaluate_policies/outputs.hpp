#pragma once

#include <string>

#include "settings.hpp"

namespace terse::examples {

/// A run takes minutes: a file that cannot be written, or that is an input or another output, is
/// noticed before. Throws InputError.
void check_outputs(const Settings& settings);

/// Writes and says so on standard error; nothing for an empty path. Throws InputError.
void write_output(const std::string& path, const std::string& content);

}  // namespace terse::examples
