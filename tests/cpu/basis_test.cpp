// Rotations by kernels are those that encoding uses.
#include "terse/cpu/basis.hpp"

#include <cstring>
#include <vector>

#include "terse/quant/int4_rotated.hpp"
#include "terse/quant/int8.hpp"
#include "terse/quant/q4_0.hpp"
#include "terse/quant/turboquant.hpp"

#include "tests/cpu/kernel_inputs.hpp"
#include "tests/support/catch.hpp"

using namespace terse_test;
using terse::CodecContext;
using terse::Side;

TEST_CASE("the Hadamard kernels give the bits of the plain transform") {
  for (const terse::cpu::KernelTable* table : available_tables()) {
    for (const int width : {4, 16, 20, 32, 64, 80, 96, 128, 192, 256, 512}) {
      for (const int limit : {8, 64, 256}) {
        const int size = terse::hadamard_size(width, limit);
        std::vector<float> x = make_matrix(Shape::outliers, 1, width, 5), y = x;
        terse::hadamard(x.data(), width, size);
        table->hadamard(y.data(), width, size);
        INFO(table->name << ", width " << width << ", runs of " << size);
        CHECK(std::memcmp(x.data(), y.data(), x.size() * sizeof(float)) == 0);
      }
    }
  }
}

namespace {

/// A rotation of one's own on top of the library's.
struct Flipped : terse::Int4Rotated {
  static void to_basis(const CodecContext& context, float* x) {
    x[0] = -x[0];
    terse::Int4Rotated::to_basis(context, x);
  }
  static void from_basis(const CodecContext& context, float* x) {
    terse::Int4Rotated::from_basis(context, x);
    x[0] = -x[0];
  }
};

}  // namespace

TEST_CASE("kernels turn the bases they know, and leave others to the codec") {
  CHECK(terse::cpu::HasHadamardBasis<terse::Int4Rotated>);
  CHECK(terse::cpu::HasHadamardBasis<terse::Q4_0>);
  CHECK(terse::cpu::HasSignedHadamardBasis<terse::TurboQuant3>);
  CHECK_FALSE(terse::cpu::HasHadamardBasis<terse::TurboQuant3>);
  CHECK_FALSE(terse::cpu::HasHadamardBasis<terse::Int8>);
  CHECK_FALSE(terse::cpu::HasHadamardBasis<Flipped>);
  const CodecContext context{Side::key, 64};
  const std::vector<float> x = make_matrix(Shape::normal, 1, 64, 5);
  std::vector<float> own = x, turned = x;
  Flipped::to_basis(context, own.data());
  terse::cpu::turn_to_basis<Flipped>(terse::cpu::kernels(), context, turned.data());
  CHECK(own == turned);
  terse::cpu::turn_from_basis<Flipped>(terse::cpu::kernels(), context, turned.data());
  for (std::size_t c = 0; c < x.size(); ++c) CHECK(std::abs(turned[c] - x[c]) < 1e-5f);
}

TEST_CASE("kernels turn signs as the codec does") {
  for (const terse::cpu::KernelTable* table : available_tables()) {
    INFO(table->name);
    for (const int width : {64, 80, 128}) {
      const CodecContext context{Side::value, width};
      const std::vector<float> x = make_matrix(Shape::normal, 1, width, 5);
      std::vector<float> own = x, turned = x;
      terse::TurboQuant3::to_basis(context, own.data());
      terse::cpu::turn_to_basis<terse::TurboQuant3>(*table, context, turned.data());
      CHECK(own == turned);
      terse::TurboQuant3::from_basis(context, own.data());
      terse::cpu::turn_from_basis<terse::TurboQuant3>(*table, context, turned.data());
      CHECK(own == turned);
    }
  }
}
