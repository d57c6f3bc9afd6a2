#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "evaluation/policy_check.hpp"
#include "model/llama.hpp"

namespace terse::examples {

/// The first pass of a check: logits `[row, vocabulary]` of positions `first_scored` to the last,
/// with plain 16-bit keys and values.
[[nodiscard]] std::vector<float> exact_logits(const LlamaModel& model,
                                              std::span<const std::int32_t> tokens,
                                              int first_scored);

/// The second pass, with the check's attention. `exact`: exact_logits of the same tokens.
[[nodiscard]] CheckReport run_check(const LlamaModel& model, PolicyCheck& check,
                                    std::span<const std::int32_t> tokens,
                                    std::span<const float> exact);

/// Gives all keys of all layers a bias in their slowest RoPE channel, the last that RoPE turns. The
/// model answers nearly as before: over a text that channel hardly turns, so that all logits of a
/// row shift alike, which the softmax cancels.
void add_key_bias(LlamaModel& model, float bias);

}  // namespace terse::examples
