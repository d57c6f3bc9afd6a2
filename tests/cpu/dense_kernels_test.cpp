// Kernels over fp32, fp16 and fp8 blocks against double-precision sums.
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "terse/core/scalar.hpp"
#include "terse/quant/fp8.hpp"

#include "tests/cpu/kernel_inputs.hpp"
#include "tests/support/catch.hpp"

using namespace terse_test;
using terse::block_tokens;
using terse::F16;
using terse::cpu::KernelTable;

namespace {

constexpr int widths[] = {16, 24, 32, 48, 64, 70, 80, 96, 128, 144, 192, 256};
constexpr int row_counts[] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 13, 64};
constexpr int token_counts[] = {64, 16, 48, 32};
constexpr double tolerance = 1e-6;

void store(float x, float& out) { out = x; }
void store(float x, F16& out) { out = terse::to_f16_saturating(x); }
void store(float x, std::uint8_t& out) { out = terse::to_e4m3(x); }
double value_of(float x) { return static_cast<double>(x); }
double value_of(F16 x) { return static_cast<double>(terse::to_float(x)); }
double value_of(std::uint8_t x) { return static_cast<double>(terse::from_e4m3(x)); }

void scores(const KernelTable& t, const float* q, int rows, int width, const float* k, int tokens,
            float* out, const std::byte*) {
  t.scores_f32(q, rows, width, k, tokens, out);
}
void scores(const KernelTable& t, const float* q, int rows, int width, const F16* k, int tokens,
            float* out, const std::byte* next) {
  t.scores_f16(q, rows, width, k, tokens, out, next);
}
void scores(const KernelTable& t, const float* q, int rows, int width, const std::uint8_t* k,
            int tokens, float* out, const std::byte* next) {
  t.scores_e4m3(q, rows, width, k, tokens, out, next);
}
void values(const KernelTable& t, const float* p, int rows, int width, const float* v, int tokens,
            float* out, const std::byte*) {
  t.values_f32(p, rows, width, v, tokens, out);
}
void values(const KernelTable& t, const float* p, int rows, int width, const F16* v, int tokens,
            float* out, const std::byte* next) {
  t.values_f16(p, rows, width, v, tokens, out, next);
}
void values(const KernelTable& t, const float* p, int rows, int width, const std::uint8_t* v,
            int tokens, float* out, const std::byte* next) {
  t.values_e4m3(p, rows, width, v, tokens, out, next);
}

template <class T>
std::vector<T> stored(Shape shape, int rows, int columns, std::uint64_t seed) {
  const std::vector<float> x = make_matrix(shape, rows, columns, seed);
  std::vector<T> out(x.size());
  for (std::size_t i = 0; i < x.size(); ++i) store(x[i], out[i]);
  return out;
}

template <class T>
void check_scores(const KernelTable& table, int width, int rows, int tokens, Shape shape) {
  const auto seed = static_cast<std::uint64_t>(width + 1000 * rows);
  const std::vector<T> keys = stored<T>(shape, width, tokens, seed);
  const std::vector<float> queries = make_matrix(shape, rows, width, seed + 1);
  const auto count = static_cast<std::size_t>(rows * block_tokens);
  std::vector<float> out(count + 16, 777.0f);
  const auto* next = rows % 2 == 0 ? nullptr : reinterpret_cast<const std::byte*>(keys.data());
  scores(table, queries.data(), rows, width, keys.data(), tokens, out.data(), next);
  INFO("width " << width << ", rows " << rows << ", tokens " << tokens);
  for (int r = 0; r < rows; ++r) {
    std::vector<double> wanted, size;
    for (int t = 0; t < tokens; ++t) {
      double sum = 0.0, squares = 0.0;
      for (int c = 0; c < width; ++c) {
        const double term = value_of(queries[static_cast<std::size_t>(r * width + c)]) *
                            value_of(keys[static_cast<std::size_t>(c * tokens + t)]);
        sum += term;
        squares += term * term;
      }
      wanted.push_back(sum);
      size.push_back(std::sqrt(squares) + std::fabs(sum));
    }
    CHECK(relative_error(wanted, out.data() + r * block_tokens, size) < tolerance);
    for (int t = tokens; t < block_tokens; ++t) {
      REQUIRE(out[static_cast<std::size_t>(r * block_tokens + t)] == 777.0f);
    }
  }
  for (std::size_t i = count; i < out.size(); ++i) REQUIRE(out[i] == 777.0f);
}

template <class T>
void check_values(const KernelTable& table, int width, int rows, int tokens, Shape shape) {
  const auto seed = static_cast<std::uint64_t>(width + 1000 * rows + 5);
  const std::vector<T> v = stored<T>(shape, tokens, width, seed);
  const std::vector<float> p = make_matrix(Shape::normal, rows, block_tokens, seed + 1);
  const auto count = static_cast<std::size_t>(rows * width);
  std::vector<float> out(count + 16, 0.25f);
  const auto* next = rows % 2 == 0 ? nullptr : reinterpret_cast<const std::byte*>(v.data());
  values(table, p.data(), rows, width, v.data(), tokens, out.data(), next);
  INFO("width " << width << ", rows " << rows << ", tokens " << tokens);
  std::vector<double> wanted, size;
  for (int r = 0; r < rows; ++r) {
    for (int c = 0; c < width; ++c) {
      double sum = 0.25, squares = 0.0625;
      for (int t = 0; t < tokens; ++t) {
        const double term = value_of(p[static_cast<std::size_t>(r * block_tokens + t)]) *
                            value_of(v[static_cast<std::size_t>(t * width + c)]);
        sum += term;
        squares += term * term;
      }
      wanted.push_back(sum);
      size.push_back(std::sqrt(squares) + std::fabs(sum));
    }
  }
  CHECK(relative_error(wanted, out.data(), size) < tolerance);
  for (std::size_t i = count; i < out.size(); ++i) REQUIRE(out[i] == 0.25f);
}

template <class T>
void check_all() {
  for (const KernelTable* table : available_tables()) {
    INFO(table->name);
    std::size_t turn = 0;
    for (const int width : widths) {
      for (const int rows : row_counts) {
        const int tokens = token_counts[turn % 4];
        const Shape shape = all_shapes[turn++ % 5];
        check_scores<T>(*table, width, rows, tokens, shape);
        check_values<T>(*table, width, rows, tokens, shape);
      }
    }
  }
}

}  // namespace

TEST_CASE("fp32 blocks") { check_all<float>(); }
TEST_CASE("fp16 blocks") { check_all<F16>(); }
TEST_CASE("fp8 blocks") { check_all<std::uint8_t>(); }

TEST_CASE("every fp8 code and every finite fp16 number is read as the codec reads it") {
  for (const KernelTable* table : available_tables()) {
    INFO(table->name);
    const float one = 1.0f;
    int differences = 0;
    for (int base = 0; base < 65536; base += block_tokens) {
      F16 halves[block_tokens];
      std::uint8_t codes[block_tokens];
      for (int t = 0; t < block_tokens; ++t) {
        const auto bits = static_cast<std::uint16_t>(base + t);
        halves[t] = F16{(bits & 0x7c00u) == 0x7c00u ? std::uint16_t{0} : bits};
        codes[t] = static_cast<std::uint8_t>(bits);
      }
      float from_halves[block_tokens], from_codes[block_tokens];
      table->scores_f16(&one, 1, 1, halves, block_tokens, from_halves, nullptr);
      table->scores_e4m3(&one, 1, 1, codes, block_tokens, from_codes, nullptr);
      for (int t = 0; t < block_tokens; ++t) {
        if (from_halves[t] != terse::to_float(halves[t])) ++differences;
        if (from_codes[t] != terse::from_e4m3(codes[t])) ++differences;
      }
    }
    CHECK(differences == 0);
  }
}

TEST_CASE("a row's sums do not depend on the rows beside it") {
  constexpr int width = 80;
  const std::vector<F16> v = stored<F16>(Shape::normal, width, block_tokens, 3);
  const std::vector<float> q = make_matrix(Shape::normal, 64, width, 4);
  for (const KernelTable* table : available_tables()) {
    INFO(table->name);
    for (const int rows : row_counts) {
      std::vector<float> together(static_cast<std::size_t>(rows * block_tokens));
      table->scores_f16(q.data(), rows, width, v.data(), block_tokens, together.data(), nullptr);
      for (int r = 0; r < rows; ++r) {
        float alone[block_tokens];
        table->scores_f16(q.data() + r * width, 1, width, v.data(), block_tokens, alone, nullptr);
        REQUIRE(std::memcmp(alone, together.data() + r * block_tokens, sizeof alone) == 0);
      }
    }
  }
}
