// The softmax kernels: exponentials, masks, running maximum and sum.
#include <cmath>
#include <cstdint>
#include <vector>

#include "tests/cpu/kernel_inputs.hpp"
#include "tests/support/catch.hpp"

using namespace terse_test;
using terse::block_tokens;
using terse::cpu::KernelTable;
using terse::cpu::SoftmaxState;

namespace {

constexpr std::uint64_t everything = ~std::uint64_t{0};
constexpr float infinity = HUGE_VALF;

}  // namespace

TEST_CASE("exp has a relative error of at most 2e-7 down to the smallest normal number") {
  for (const KernelTable* table : available_tables()) {
    INFO(table->name);
    double worst = 0.0;
    Numbers numbers(1);
    for (int repeat = 0; repeat < 4000; ++repeat) {
      float x[block_tokens], y[block_tokens];
      const double range = repeat % 2 == 0 ? 87.3 : 2.0;
      for (int t = 0; t < block_tokens; ++t) {
        x[t] = y[t] = static_cast<float>(-range * numbers.uniform());
      }
      x[repeat % block_tokens] = y[repeat % block_tokens] = 0.0f;
      SoftmaxState state;
      table->softmax_block(y, everything, &state);
      for (int t = 0; t < block_tokens; ++t) {
        const double wanted = std::exp(static_cast<double>(x[t]));
        worst = std::max(worst, std::fabs(static_cast<double>(y[t]) - wanted) / wanted);
      }
    }
    CHECK(worst < 2e-7);
  }
}

TEST_CASE("far below the maximum exp runs to zero; subnormals may be zero") {
  for (const KernelTable* table : available_tables()) {
    INFO(table->name);
    float x[block_tokens];
    for (int t = 0; t < block_tokens; ++t) x[t] = -static_cast<float>(t) * 2.0f;
    x[62] = -3e38f;
    x[63] = -infinity;
    SoftmaxState state;
    table->softmax_block(x, everything, &state);
    for (int t = 0; t < 62; ++t) {
      const double wanted = std::exp(-2.0 * t);
      CHECK(std::fabs(static_cast<double>(x[t]) - wanted) <= 2e-7 * wanted + 0x1p-126);
    }
    CHECK(x[62] == 0.0f);
    CHECK(x[63] == 0.0f);
  }
}

TEST_CASE("masked tokens become zero, whatever they held") {
  for (const KernelTable* table : available_tables()) {
    Numbers numbers(2);
    for (int repeat = 0; repeat < 200; ++repeat) {
      std::uint64_t mask = 0;
      for (int t = 0; t < block_tokens; ++t) {
        if (numbers.uniform() < 0.5) mask |= std::uint64_t{1} << t;
      }
      mask |= std::uint64_t{1} << repeat % block_tokens;
      float x[block_tokens], y[block_tokens];
      double maximum = -HUGE_VAL;
      for (int t = 0; t < block_tokens; ++t) {
        const bool counts = (mask >> t & 1u) != 0;
        // Outside the mask lies what a kernel may leave in unused tokens.
        const float other = t % 3 == 0 ? std::nanf("") : (t % 3 == 1 ? infinity : 1e30f);
        x[t] = y[t] = counts ? 5.0f * numbers.normal() : other;
        if (counts) maximum = std::max(maximum, static_cast<double>(x[t]));
      }
      SoftmaxState state;
      CHECK(table->softmax_block(y, mask, &state) == 0.0f);
      CHECK(static_cast<double>(state.max) == maximum);
      double sum = 0.0;
      for (int t = 0; t < block_tokens; ++t) {
        INFO(table->name << ", token " << t);
        if ((mask >> t & 1u) == 0) {
          REQUIRE(y[t] == 0.0f);
        } else {
          const double p = std::exp(static_cast<double>(x[t]) - maximum);
          REQUIRE(std::fabs(static_cast<double>(y[t]) - p) <= 4e-6 * p);  // the difference rounds
          sum += p;
        }
      }
      CHECK(static_cast<double>(state.sum) == Approx(sum).epsilon(1e-6));
    }
  }
}

TEST_CASE("blocks one after another keep one maximum and one sum") {
  for (const KernelTable* table : available_tables()) {
    INFO(table->name);
    Numbers numbers(3);
    std::vector<double> logits;
    SoftmaxState state;
    double weighted = 0.0;  // sum of probability times token, rescaled by the returned factors
    for (int block = 0; block < 40; ++block) {
      float x[block_tokens];
      for (int t = 0; t < block_tokens; ++t) {
        x[t] = 3.0f * numbers.normal() + (block == 17 ? 60.0f : 0.0f);
        logits.push_back(static_cast<double>(x[t]));
      }
      const float before = state.max;
      const float factor = table->softmax_block(x, everything, &state);
      if (state.max == before) CHECK(factor == 1.0f);
      weighted *= static_cast<double>(factor);
      for (int t = 0; t < block_tokens; ++t) weighted += static_cast<double>(x[t]) * t;
    }
    double sum = 0.0, wanted = 0.0;
    for (std::size_t i = 0; i < logits.size(); ++i) {
      const double p = std::exp(logits[i] - static_cast<double>(state.max));
      sum += p;
      wanted += p * static_cast<double>(i % block_tokens);
    }
    CHECK(static_cast<double>(state.sum) == Approx(sum).epsilon(2e-6));
    CHECK(weighted == Approx(wanted).epsilon(2e-6));
  }
}

TEST_CASE("rows together give the bits of rows alone, and scale what they had summed") {
  constexpr int width = 37;
  for (const KernelTable* table : available_tables()) {
    for (int rows = 1; rows <= 9; ++rows) {
      INFO(table->name << ", rows " << rows);
      const auto seed = static_cast<std::uint64_t>(rows);
      std::vector<float> together = make_matrix(Shape::normal, rows, block_tokens, seed);
      for (int t = 0; t < block_tokens; ++t) {
        if (rows > 2) together[static_cast<std::size_t>(block_tokens + t)] = -infinity;
      }
      std::vector<float> alone = together;
      std::vector<float> sums(static_cast<std::size_t>(rows * width), 2.0f);
      std::vector<SoftmaxState> states(static_cast<std::size_t>(rows));
      for (int r = 0; r < rows; ++r)
        states[static_cast<std::size_t>(r)] = {static_cast<float>(r % 2) - 0.5f, 3.0f};
      std::vector<SoftmaxState> own = states;
      const std::uint64_t mask = everything - (std::uint64_t{1} << rows);
      table->softmax_rows(together.data(), rows, mask, states.data(), width, sums.data());
      for (int r = 0; r < rows; ++r) {
        const auto i = static_cast<std::size_t>(r);
        const float factor = table->softmax_block(alone.data() + r * block_tokens, mask, &own[i]);
        CHECK(own[i].max == states[i].max);
        CHECK(own[i].sum == states[i].sum);
        for (int c = 0; c < width; ++c) {
          REQUIRE(sums[static_cast<std::size_t>(r * width + c)] == 2.0f * factor);
        }
      }
      CHECK(together == alone);
    }
  }
}

TEST_CASE("logits of minus infinity alone leave the state as it was") {
  for (const KernelTable* table : available_tables()) {
    INFO(table->name);
    float x[block_tokens];
    for (float& e : x) e = -infinity;
    SoftmaxState state;
    CHECK(table->softmax_block(x, everything, &state) == 1.0f);
    CHECK(state.max == -infinity);
    CHECK(state.sum == 0.0f);
    for (const float e : x) CHECK(e == 0.0f);

    state = {1.0f, 2.0f};
    for (float& e : x) e = -infinity;
    CHECK(table->softmax_block(x, 0xff, &state) == 1.0f);
    CHECK(state.max == 1.0f);
    CHECK(state.sum == 2.0f);
    for (const float e : x) CHECK(e == 0.0f);
  }
}

TEST_CASE("a NaN logit reaches the sum") {
  for (const KernelTable* table : available_tables()) {
    INFO(table->name);
    float x[block_tokens] = {};
    x[20] = std::nanf("");
    SoftmaxState state;
    table->softmax_block(x, everything, &state);
    CHECK(std::isnan(state.sum));
  }
}

TEST_CASE("the soft cap is cap * tanh(x / cap), and keeps signs, infinities and NaN") {
  for (const KernelTable* table : available_tables()) {
    INFO(table->name);
    Numbers numbers(7);
    for (const float cap : {0.5f, 5.0f, 50.0f}) {
      double worst = 0.0;
      for (const double range : {0.02, 0.3, 2.0, 30.0}) {
        float x[block_tokens], y[block_tokens];
        for (int t = 0; t < block_tokens; ++t) {
          x[t] = y[t] = static_cast<float>((2.0 * numbers.uniform() - 1.0) * range * cap);
        }
        table->soft_cap(y, block_tokens, cap);
        for (int t = 0; t < block_tokens; ++t) {
          const double c = static_cast<double>(cap), wanted = c * std::tanh(x[t] / c);
          worst = std::max(worst, std::fabs(static_cast<double>(y[t]) - wanted) / c);
        }
      }
      CHECK(worst < 1.5e-7);
    }
    float edges[16] = {0.0f, -0.0f, infinity, -infinity, std::nanf(""), 1e-30f, -1e30f, 3e38f};
    table->soft_cap(edges, 16, 2.0f);
    CHECK((edges[0] == 0.0f && edges[1] == 0.0f));
    CHECK((edges[2] == 2.0f && edges[3] == -2.0f));
    CHECK(std::isnan(edges[4]));
    CHECK((edges[5] == 1e-30f && edges[6] == -2.0f && edges[7] == 2.0f));
  }
}

TEST_CASE("unknown tables are null, the best one is among the known") {
  CHECK(terse::cpu::kernels_named("sse9") == nullptr);
  REQUIRE(terse::cpu::kernels_named("portable") != nullptr);
  CHECK(terse::cpu::kernels_named(terse::cpu::kernels().name) == &terse::cpu::kernels());
}
