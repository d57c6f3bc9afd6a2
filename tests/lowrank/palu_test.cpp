// Palu's head groups.
#include "terse/lowrank/palu.hpp"

#include "terse/policy/compose.hpp"

#include "tests/support/catch.hpp"

using namespace terse;

namespace {

template <PaluSpec S>
UnitShape shape_of(int kv_heads) {
  UnitShape shape;
  REQUIRE(divide_units<Palu<S>>(kv_heads, &shape).ok());
  return shape;
}

}  // namespace

TEST_CASE("M-LRD: every head its own latents") {
  const UnitShape s = shape_of<PaluSpec{1, 1}>(8);
  CHECK(s.units == 8);
  CHECK((s.key_streams == 1 && s.value_streams == 1 && s.heads_per_unit == 1));
}

TEST_CASE("G-LRD: groups of heads share a latent") {
  const UnitShape s = shape_of<PaluSpec{.key_heads_per_group = 4, .value_heads_per_group = 2}>(8);
  CHECK(s.units == 2);
  CHECK(s.heads_per_unit == 4);
  CHECK(s.key_heads_per_stream == 4);
  CHECK(s.value_heads_per_stream == 2);
  CHECK((s.key_streams == 1 && s.value_streams == 2));
}

TEST_CASE("J-LRD: all heads of a layer share a latent, whatever their number") {
  for (const int heads : {1, 3, 8}) {
    const UnitShape s = shape_of<PaluSpec{}>(heads);
    CHECK(s.units == 1);
    CHECK(s.key_heads_per_stream == heads);
    CHECK((s.key_streams == 1 && s.value_streams == 1));
  }
}

TEST_CASE("groups that do not divide the heads are refused") {
  UnitShape shape;
  CHECK_FALSE(divide_units<Palu<PaluSpec{.key_heads_per_group = 2}>>(3, &shape).ok());
  CHECK_FALSE(divide_units<Palu<PaluSpec{.value_heads_per_group = 4}>>(6, &shape).ok());
}

TEST_CASE("Palu's parts are projectors") {
  static_assert(Projector<PaluJoint> && Projector<PaluPerHead>);
  static_assert(Compose<PaluJoint>::projects && Compose<PaluPerHead>::projects);
}
