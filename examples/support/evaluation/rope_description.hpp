#pragma once

#include "terse/core/rope.hpp"

#include "model/llama.hpp"

namespace terse::examples {

/// A model's RoPE as a cache describes it, found from the model's frequencies: plain, with divided
/// positions, or with the scaling of Llama 3.1 and later. Throws InputError for any other.
[[nodiscard]] RopeSpec rope_description(const LlamaConfig& config);

}  // namespace terse::examples
