#include "matmul.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>
#include <vector>

#include "kernels.hpp"
#include "random_values.hpp"
#include "support/catch.hpp"

using namespace terse::examples;
using terse_test::RandomValues;

namespace {

struct Sizes {
  int rows;
  int in;
  int out;
};

std::size_t size(int count) { return static_cast<std::size_t>(count); }

/// The largest |y - x w^T| over the sum of |x| |w|, in fp64.
double relative_error(const Sizes& sizes, const std::vector<float>& x, const std::vector<float>& w,
                      const float* y) {
  double worst = 0;
  for (int row = 0; row < sizes.rows; ++row) {
    for (int column = 0; column < sizes.out; ++column) {
      double sum = 0;
      double scale = 0;
      for (int i = 0; i < sizes.in; ++i) {
        const double term = double(x[size(row * sizes.in + i)]) * w[size(column * sizes.in + i)];
        sum += term;
        scale += std::abs(term);
      }
      worst = std::max(worst, std::abs(sum - double(y[row * sizes.out + column])) / scale);
    }
  }
  return worst;
}

/// The tables that this processor can run.
std::vector<std::pair<const char*, const Kernels*>> runnable_kernels() {
  std::vector<std::pair<const char*, const Kernels*>> tables = {{"baseline", &baseline_kernels()}};
#if defined(__x86_64__)
  // A processor that has a set has the smaller ones too.
  if (&kernels() != &baseline_kernels()) {
    tables.emplace_back("avx2", &avx2_kernels());
  }
  if (&kernels() == &avx512_kernels()) {
    tables.emplace_back("avx512", &avx512_kernels());
  }
#endif
  return tables;
}

}  // namespace

TEST_CASE("products agree with fp64 for every thread count, bit by bit with each other") {
  RandomValues random(1);
  for (const Sizes sizes : {Sizes{1, 64, 200}, Sizes{1, 576, 1}, Sizes{2, 33, 65}, Sizes{15, 7, 64},
                            Sizes{16, 64, 513}, Sizes{300, 48, 70}}) {
    CAPTURE(sizes.rows, sizes.in, sizes.out);
    const auto x = random.vector(size(sizes.rows * sizes.in));
    const auto w = random.vector(size(sizes.out * sizes.in));
    std::vector<float> first;
    for (const int threads : {1, 2, 3}) {
      ThreadPool pool(threads);
      // Other addresses must not change the result either.
      std::vector<float> shifted(x.size() + size(threads));
      std::copy(x.begin(), x.end(), shifted.begin() + threads);
      std::vector<float> y(size(sizes.rows * sizes.out) + size(threads), -1.0f);
      matmul(pool, shifted.data() + threads, sizes.rows, w.data(), sizes.in, sizes.out,
             y.data() + threads);
      y.erase(y.begin(), y.begin() + threads);
      CHECK(relative_error(sizes, x, w, y.data()) < 1e-6);
      first = first.empty() ? y : first;
      CHECK(std::memcmp(first.data(), y.data(), 4 * y.size()) == 0);
    }
  }
}

TEST_CASE("every instruction set computes the same functions") {
  RandomValues random(2);
  const Sizes sizes = {5, 37, 21};
  const auto x = random.vector(size(sizes.rows * sizes.in));
  const auto w = random.vector(size(sizes.out * sizes.in));
  for (const auto& [name, table] : runnable_kernels()) {
    INFO(name);
    std::vector<float> y(size(sizes.rows * sizes.out));
    table->multiply_transposed(x.data(), sizes.in, sizes.rows, w.data(), sizes.in, sizes.in,
                               sizes.out, y.data(), sizes.out);
    CHECK(relative_error(sizes, x, w, y.data()) < 1e-6);

    std::vector<float> transposed(w.size());
    for (int row = 0; row < sizes.in; ++row) {
      for (int column = 0; column < sizes.out; ++column) {
        transposed[size(row * sizes.out + column)] = w[size(column * sizes.in + row)];
      }
    }
    table->multiply(x.data(), sizes.in, sizes.rows, transposed.data(), sizes.out, sizes.in,
                    sizes.out, y.data(), sizes.out);
    CHECK(relative_error(sizes, x, w, y.data()) < 1e-6);

    for (const int count : {1, 3, 255, 256, 257, 1000}) {
      const auto logits = random.vector(size(count), 30.0f);
      const auto factors = random.vector(size(count));
      double largest = -1e9;
      double sum = 0;
      for (const float logit : logits) {
        largest = std::max(largest, double(logit));
      }
      for (const float logit : logits) {
        sum += std::exp((double(logit) - largest) * 0.5);
      }
      std::vector<float> weights = logits;
      table->softmax(weights.data(), count, 0.5f);
      std::vector<float> gate = logits;
      table->silu_multiply(gate.data(), factors.data(), count);
      double plain_sum = 0;
      for (std::size_t i = 0; i < logits.size(); ++i) {
        const double logit = logits[i];
        plain_sum += std::exp(logit);
        CHECK(double(weights[i]) == Approx(std::exp((logit - largest) * 0.5) / sum).epsilon(1e-5));
        CHECK(double(gate[i]) ==
              Approx(logit / (1 + std::exp(-logit)) * double(factors[i])).epsilon(1e-5));
      }
      CHECK(table->log_sum_exp(logits.data(), count) == Approx(std::log(plain_sum)).epsilon(1e-7));
    }
  }
}

TEST_CASE("softmax depends on its values, not on their address") {
  RandomValues random(3);
  const auto logits = random.vector(777, 5.0f);
  std::vector<float> first;
  for (const std::size_t shift : {0u, 1u, 3u, 7u, 16u}) {
    std::vector<float> buffer(logits.size() + shift);
    std::copy(logits.begin(), logits.end(), buffer.begin() + std::ptrdiff_t(shift));
    kernels().softmax(buffer.data() + shift, 777, 0.125f);
    buffer.erase(buffer.begin(), buffer.begin() + std::ptrdiff_t(shift));
    first = first.empty() ? buffer : first;
    CHECK(first == buffer);
  }
}

TEST_CASE("large and equal logits stay finite") {
  std::vector<float> logits = {1e4f, 1e4f, -1e4f};
  CHECK(log_sum_exp(logits.data(), 3) == Approx(1e4 + std::log(2.0)));
  kernels().softmax(logits.data(), 3, 1.0f);
  CHECK(logits[0] == 0.5f);
  CHECK(logits[2] < 1e-30f);
  std::vector<float> gate = {-200.0f, 200.0f};
  const std::vector<float> ones = {1.0f, 1.0f};
  silu_multiply(gate.data(), ones.data(), 2);
  CHECK(std::abs(gate[0]) < 1e-30f);
  CHECK(gate[1] == 200.0f);
}
