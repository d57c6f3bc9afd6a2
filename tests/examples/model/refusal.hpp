#pragma once

#include <string>

#include "input_error.hpp"

namespace terse_test {

/// The text of the InputError that `action` throws; empty where it throws none.
template <typename Action>
std::string refusal_of(Action action) {
  try {
    action();
  } catch (const terse::examples::InputError& error) {
    return error.what();
  }
  return {};
}

inline bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

}  // namespace terse_test
