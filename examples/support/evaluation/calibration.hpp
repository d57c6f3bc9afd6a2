#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>

#include "terse/cache/calibration.hpp"
#include "terse/quant/shaped.hpp"

#include "model/llama.hpp"

namespace terse::examples {

/// Names a model's file: the beginning of its SHA-256.
[[nodiscard]] std::uint64_t fingerprint_of_model(const std::string& path);

/// Calibrates a model on a text, which is run in windows that its context allows. The windows are
/// shared among `threads` threads; the result does not depend on their number. `progress` is
/// called, from any of them, with the tokens of each finished window. Keys are calibrated for
/// caches that keep the newest `tail_tokens` exact: what queries see of those counts nothing.
/// Throws InputError where that leaves a head nothing.
[[nodiscard]] Calibration calibrate(const LlamaModel& model, std::uint64_t model_fingerprint,
                                    std::span<const std::int32_t> tokens, int threads = 1,
                                    const std::function<void(int)>& progress = {},
                                    int tail_tokens = ShapedSpec{}.tail.min_tokens);

/// Reads a calibration of that model; throws InputError where it is none.
[[nodiscard]] Calibration load_calibration(const std::string& path, const LlamaModel& model,
                                           std::uint64_t model_fingerprint);

/// The same from the file `path`, unless that is empty, of the model that the file `model_path`
/// holds.
[[nodiscard]] std::optional<Calibration> load_if_named(const std::string& path,
                                                       const LlamaModel& model,
                                                       const std::string& model_path);

/// The bytes of its file.
[[nodiscard]] std::string file_of(const Calibration& calibration);

}  // namespace terse::examples
