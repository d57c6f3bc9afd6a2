/// Which positions queries see. Keys are stored after RoPE, latents of keys before it.
#pragma once

#include <cstdint>

#include "terse/config.hpp"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {

enum class Reindex : std::uint8_t {
  original,     ///< distances are those of the text
  cache_index,  ///< distances are those inside the cache (StreamingLLM)
};

}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
