#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "evaluation/session.hpp"
#include "model/llama.hpp"
#include "report/statistics.hpp"

namespace terse::examples {

/// Throws InputError if the model's context is shorter than the `tokens` that `option` asks for.
void check_context(const std::string& option, int tokens, const LlamaConfig& model);

/// What the reference run saw in one layer.
struct LayerTrace {
  int layer;
  std::span<const float> normed;   ///< [token, hidden]: the input of the projections
  std::span<const float> queries;  ///< [token, query head, channel], before RoPE if asked for
  std::span<const float> keys;     ///< [token, KV head, channel], after RoPE
  std::span<const float> values;   ///< [token, KV head, channel]
};

/// The residual stream [token, hidden] after the last layer with plain 16-bit keys and values,
/// outside any cache. `trace` is called for every layer, with queries before RoPE, if given.
[[nodiscard]] std::vector<float> run_reference(
    const LlamaModel& model, std::span<const std::int32_t> tokens,
    const std::function<void(const LayerTrace&)>& trace = {});

/// Takes the residual stream `x` [token, hidden] of a window through layers [begin, end) with plain
/// 16-bit keys and values, in place.
void run_reference_layers(const LlamaModel& model, std::span<float> x, int begin, int end);

/// What a cache held at the end of a window, over all layers.
struct WindowMemory {
  double bits_per_element = 0;
  double bytes_per_token = 0;  ///< pages held, tails and tables of single-token decoding
  double share_read = 0;       ///< as SessionMemory's
};

/// Takes the residual stream `x` [token, hidden] of a window through one layer, decoding through a
/// cache of that layer, in place. `session` has just been made or restarted for it.
void run_window_layer(const LlamaModel& model, const SessionConfig& config, Session& session,
                      int layer, std::span<float> x);

/// The residual stream [token, hidden] after the last layer, decoding through a cache: at each
/// layer every token is appended, then attends, in steps that seal and evict exactly when
/// single-token steps would. `session` serves one layer at a time, which is the same because layers
/// share nothing.
[[nodiscard]] std::vector<float> run_window(const LlamaModel& model, const SessionConfig& config,
                                            Session& session, std::span<const std::int32_t> tokens,
                                            WindowMemory* memory = nullptr);

/// Calls `f(position, logits)` for positions [begin, end) of a residual stream.
void for_each_logits(const LlamaModel& model, std::span<const float> residual, int begin, int end,
                     const std::function<void(int, const float*)>& f);

}  // namespace terse::examples
