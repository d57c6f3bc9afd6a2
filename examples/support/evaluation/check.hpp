#pragma once

#include <stdexcept>
#include <string>

#include "terse/core/status.hpp"

namespace terse::examples {

/// Throws std::runtime_error with the status's text: a session's calls are not expected to fail.
inline void check(const Status& status) {
  if (!status.ok()) {
    throw std::runtime_error(std::string(status.text) + " (" + std::to_string(status.detail) + ")");
  }
}

}  // namespace terse::examples
