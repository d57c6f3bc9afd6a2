#pragma once

#include <cstdint>
#include <vector>

#include "evaluation/session.hpp"
#include "model/llama.hpp"

namespace terse::examples {

/// Runs `tokens`, the continuation of a sequence of `position` tokens, through all layers with a
/// session that serves the whole model. Gives the logits [vocabulary] after the last of them.
[[nodiscard]] std::vector<float> decode(const LlamaModel& model, const SessionConfig& config,
                                        Session& session, std::span<const std::int32_t> tokens,
                                        int position);

/// Decoded tokens per second at a cache of `length_tokens` tokens: the median of `steps`
/// single-token steps of the whole model, at most half of the length. The cache is filled with
/// pseudo-random vectors, whose values do not change the work.
[[nodiscard]] double decode_speed(const LlamaModel& model, const SessionConfig& config,
                                  Session& session, int length_tokens, int steps);

}  // namespace terse::examples
