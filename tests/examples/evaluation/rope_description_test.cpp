// A model's RoPE frequencies as a cache describes them.

#include "evaluation/rope_description.hpp"

#include <cmath>
#include <vector>

#include "../model/refusal.hpp"
#include "support/catch.hpp"

using namespace terse::examples;

namespace {

LlamaConfig with_frequencies(std::vector<double> frequencies) {
  LlamaConfig config;
  config.rope_dim = 2 * static_cast<int>(frequencies.size());
  config.rope_frequencies = std::move(frequencies);
  return config;
}

std::vector<double> powers(double base, int pairs, double divisor) {
  std::vector<double> frequencies(static_cast<std::size_t>(pairs));
  for (int i = 0; i < pairs; ++i) {
    frequencies[static_cast<std::size_t>(i)] = std::pow(base, -1.0 * i / pairs) / divisor;
  }
  return frequencies;
}

/// Frequencies divided as GGUF files of Llama 3.1 (factor 8) and 3.2 (factor 32) say, in fp32.
std::vector<double> llama3(double factor) {
  std::vector<double> frequencies = powers(500000.0, 64, 1.0);
  for (double& frequency : frequencies) {
    const double wavelength = 2 * std::acos(-1.0) / frequency;
    double divisor = 1;
    if (wavelength > 8192.0 / 1) {
      divisor = factor;
    } else if (wavelength > 8192.0 / 4) {
      const double smooth = (8192.0 / wavelength - 1) / (4 - 1);
      divisor = 1 / ((1 - smooth) / factor + smooth);
    }
    frequency /= double{static_cast<float>(divisor)};
  }
  return frequencies;
}

void check_described(const LlamaConfig& config) {
  const terse::RopeSpec rope = rope_description(config);
  CHECK(rope.validate(config.rope_dim).ok());
  CHECK(rope.rotary_dim == config.rope_dim);
  for (std::size_t i = 0; i < config.rope_frequencies.size(); ++i) {
    REQUIRE(rope.inverse_frequency(static_cast<int>(i)) ==
            Approx(config.rope_frequencies[i]).epsilon(1e-6));
  }
}

}  // namespace

TEST_CASE("plain frequencies and divided positions give base and scale") {
  check_described(with_frequencies(powers(10000.0, 32, 1.0)));
  const terse::RopeSpec rope = rope_description(with_frequencies(powers(100000.0, 32, 4.0)));
  CHECK(rope.base == Approx(100000.0));
  CHECK(rope.linear_scale == Approx(4.0));
  CHECK(rope.low_freq_factor == 0);
  check_described(with_frequencies({0.5}));
  check_described(with_frequencies({}));
}

TEST_CASE("the scaling of Llama 3.1 and later is recognised by its divisors") {
  for (const double factor : {8.0, 32.0}) {
    const LlamaConfig config = with_frequencies(llama3(factor));
    check_described(config);
    CHECK(rope_description(config).frequency_scale == Approx(factor));
  }
}

TEST_CASE("the pairing is the model's") {
  LlamaConfig config = with_frequencies(powers(10000.0, 8, 1.0));
  config.rope_pairing = RopePairing::interleaved;
  CHECK(rope_description(config).pairing == terse::RopePairing::interleaved);
  config.rope_pairing = RopePairing::half_split;
  CHECK(rope_description(config).pairing == terse::RopePairing::half_split);
}

TEST_CASE("frequencies of no known kind are refused") {
  std::vector<double> odd = powers(10000.0, 32, 1.0);
  odd[20] *= 1.01;
  CHECK(terse_test::contains(
      terse_test::refusal_of([&] { static_cast<void>(rope_description(with_frequencies(odd))); }),
      "RoPE frequencies"));
}
