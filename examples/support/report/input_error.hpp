#pragma once

#include <stdexcept>

namespace terse::examples {

/// What the user gave cannot be used: a bad option, a missing or damaged file, a text too short.
/// The programs print its message and end with exit code 2.
class InputError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

}  // namespace terse::examples
