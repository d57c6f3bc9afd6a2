#include "evaluation/rope_description.hpp"

#include <cmath>
#include <cstddef>
#include <vector>

#include "report/input_error.hpp"

namespace terse::examples {

namespace {

/// GGUF files keep divisors of frequencies in fp32.
constexpr double tolerance = 1e-6;

bool describes(const RopeSpec& rope, const std::vector<double>& frequencies) {
  for (std::size_t i = 0; i < frequencies.size(); ++i) {
    const double own = rope.inverse_frequency(static_cast<int>(i));
    if (!(std::abs(frequencies[i] - own) <= tolerance * own)) return false;
  }
  return true;
}

}  // namespace

RopeSpec rope_description(const LlamaConfig& config) {
  const std::vector<double>& frequencies = config.rope_frequencies;
  RopeSpec rope;
  rope.pairing = config.rope_pairing == RopePairing::interleaved ? terse::RopePairing::interleaved
                                                                 : terse::RopePairing::half_split;
  rope.rotary_dim = config.rope_dim;
  if (frequencies.empty()) return rope;
  rope.linear_scale = 1.0 / frequencies.front();
  if (frequencies.size() > 1) {
    rope.base = std::pow(frequencies[1] / frequencies[0], -config.rope_dim / 2.0);
  }
  if (describes(rope, frequencies)) return rope;

  // Files hold the divisors that came out of the scaling, not its parameters. These three are the
  // same in all models that have it; the lowest frequency is divided by the fourth.
  const double lowest = rope.inverse_frequency(static_cast<int>(frequencies.size()) - 1);
  rope.low_freq_factor = 1.0;
  rope.high_freq_factor = 4.0;
  rope.original_context = 8192.0;
  rope.frequency_scale = lowest / frequencies.back();
  if (describes(rope, frequencies)) return rope;
  throw InputError(
      "the model's RoPE frequencies are neither a power series nor scaled as in Llama 3, which "
      "latents and StreamingLLM need");
}

}  // namespace terse::examples
