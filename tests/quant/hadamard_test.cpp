// The rotation: orthonormal, its own inverse, the same bits everywhere.
#include "terse/quant/hadamard.hpp"

#include <bit>
#include <cmath>
#include <vector>

#include "tests/support/catch.hpp"
#include "tests/support/random.hpp"

using namespace terse;

namespace {

double norm(const std::vector<float>& x) {
  double sum = 0;
  for (const float v : x) sum += double{v} * v;
  return std::sqrt(sum);
}

/// Entry of Sylvester's matrix: the sign is the parity of the common bits.
double sylvester(unsigned row, unsigned column, unsigned size) {
  return (std::popcount(row & column) % 2 == 0 ? 1.0 : -1.0) / std::sqrt(double(size));
}

}  // namespace

TEST_CASE("the run is the largest power of two that divides the width, up to the limit") {
  CHECK(hadamard_size(64, 256) == 64);
  CHECK(hadamard_size(128, 64) == 64);
  CHECK(hadamard_size(80, 256) == 16);
  CHECK(hadamard_size(96, 256) == 32);
  CHECK(hadamard_size(144, 64) == 16);
  CHECK(hadamard_size(20, 64) == 4);
  CHECK(hadamard_size(21, 64) == 1);
  CHECK(hadamard_size(512, 256) == 256);
}

TEST_CASE("each unit vector becomes its row of Sylvester's matrix") {
  for (const unsigned size : {2u, 4u, 16u, 32u, 64u, 256u}) {
    for (unsigned i = 0; i < size; i += size / 2 + 1) {
      std::vector<float> x(size, 0.0f);
      x[i] = 1.0f;
      hadamard(x.data(), static_cast<int>(size), static_cast<int>(size));
      for (unsigned j = 0; j < size; ++j) {
        REQUIRE(x[j] == Approx(sylvester(i, j, size)).epsilon(1e-6));
      }
    }
  }
}

TEST_CASE("runs are transformed separately") {
  std::vector<float> x(80, 0.0f);
  x[20] = 1.0f;
  hadamard(x.data(), 80, 16);
  for (std::size_t c = 0; c < 80; ++c) CHECK((x[c] != 0.0f) == (c / 16 == 1));
}

TEMPLATE_TEST_CASE("lengths and products are kept, and the way back leads back", "[hadamard]",
                   HadamardBasis<256>, SignedHadamardBasis<256>) {
  tests::Random random(1);
  for (const int width : {16, 20, 64, 80, 96, 128, 256, 576}) {
    const CodecContext context{Side::key, width};
    const auto x = random.normals(static_cast<std::size_t>(width));
    const auto y = random.normals(static_cast<std::size_t>(width));
    auto a = x, b = y;
    TestType::to_basis(context, a.data());
    TestType::to_basis(context, b.data());
    CHECK(norm(a) == Approx(norm(x)).epsilon(1e-6));
    double before = 0, after = 0;
    for (std::size_t c = 0; c < x.size(); ++c) {
      before += double{x[c]} * y[c];
      after += double{a[c]} * b[c];
    }
    CHECK(after == Approx(before).margin(1e-5 * norm(x) * norm(y)));
    TestType::from_basis(context, a.data());
    for (std::size_t c = 0; c < x.size(); ++c) {
      REQUIRE(a[c] == Approx(x[c]).margin(1e-6 * norm(x)));
    }
  }
}

TEST_CASE("small integers come back exactly where the length is a power of four") {
  tests::Random random(2);
  for (const int width : {4, 16, 64, 256}) {
    std::vector<float> x(static_cast<std::size_t>(width));
    for (float& v : x) v = static_cast<float>(random.below(2001) - 1000);
    auto a = x;
    hadamard(a.data(), width, width);
    hadamard(a.data(), width, width);
    CHECK(a == x);
  }
}

TEST_CASE("the bits do not change") {
  std::vector<float> x(128);
  for (std::size_t c = 0; c < x.size(); ++c) {
    x[c] = static_cast<float>(static_cast<int>(c * c % 97) - 48) / 7.0f;
  }
  hadamard(x.data(), 128, 128);
  std::uint32_t hash = 0;
  for (const float v : x) hash = hash * 31 + std::bit_cast<std::uint32_t>(v);
  CHECK(hash == 0xd8f26dbau);
}

TEST_CASE("the signs do not change, and are as many of either kind") {
  std::uint32_t first = 0;
  int turned = 0;
  for (int c = 0; c < 4096; ++c) {
    if (c < 32) first |= turns_sign(c) ? 1u << c : 0u;
    turned += turns_sign(c) ? 1 : 0;
  }
  CHECK(first == 0x629a699du);
  CHECK(std::abs(turned - 2048) < 3 * 32);
  std::vector<float> x(64, 1.0f);
  turn_signs(x.data(), 64);
  for (int c = 0; c < 64; ++c) {
    CHECK(x[static_cast<std::size_t>(c)] == (turns_sign(c) ? -1.0f : 1.0f));
  }
}

TEST_CASE("equal numbers are spread by the signed rotation only") {
  std::vector<float> plain(64, 1.0f), signs = plain;
  HadamardBasis<256>::to_basis({Side::key, 64}, plain.data());
  SignedHadamardBasis<256>::to_basis({Side::key, 64}, signs.data());
  CHECK(plain[0] == 8.0f);
  for (const float v : signs) CHECK(std::fabs(v) < 4.0f);
}

TEST_CASE("an outlier is spread evenly") {
  std::vector<float> x(64, 0.0f);
  x[7] = 64.0f;
  HadamardBasis<256>::to_basis({Side::key, 64}, x.data());
  for (const float v : x) CHECK(std::fabs(v) == 8.0f);
}
