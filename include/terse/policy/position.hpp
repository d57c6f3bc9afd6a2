/// Where stored keys stand with respect to RoPE, and which positions queries see.
#pragma once

#include <cstdint>

#include "terse/config.hpp"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {

enum class KeyForm : std::uint8_t {
  post_rope,  ///< keys are stored rotated to their logical position
  pre_rope,   ///< keys are stored before RoPE and rotated inside attention
};

enum class Reindex : std::uint8_t {
  original,     ///< distances are those of the text
  cache_index,  ///< distances are those inside the cache (StreamingLLM)
};

}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
