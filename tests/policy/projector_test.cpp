// How KV heads fall into units and latent streams.
#include "terse/policy/projector.hpp"

#include <string>

#include "terse/lowrank/palu.hpp"

#include "tests/support/catch.hpp"

using namespace terse;

namespace {

template <int K, int V>
struct Groups {
  static constexpr int key_heads_per_group = K;
  static constexpr int value_heads_per_group = V;
};

template <Projector P>
UnitShape shape_of(int kv_heads) {
  UnitShape shape;
  REQUIRE(divide_units<P>(kv_heads, &shape).ok());
  return shape;
}

}  // namespace

TEST_CASE("without a projector every KV head is a unit with one stream a side") {
  const UnitShape s = shape_of<NoProjection>(8);
  CHECK(s.units == 8);
  CHECK(s.heads_per_unit == 1);
  CHECK((s.key_streams == 1 && s.value_streams == 1));
}

TEST_CASE("0 means all KV heads of the layer") {
  const UnitShape s = shape_of<Groups<0, 0>>(3);
  CHECK(s.units == 1);
  CHECK(s.heads_per_unit == 3);
  CHECK((s.key_heads_per_stream == 3 && s.value_heads_per_stream == 3));
  CHECK((s.key_streams == 1 && s.value_streams == 1));
}

TEST_CASE("a unit is closed under both groupings") {
  const UnitShape s = shape_of<Groups<2, 4>>(8);
  CHECK(s.units == 2);
  CHECK(s.heads_per_unit == 4);
  CHECK(s.key_streams == 2);
  CHECK(s.value_streams == 1);
  const UnitShape odd = shape_of<Groups<2, 3>>(12);
  CHECK(odd.units == 2);
  CHECK(odd.heads_per_unit == 6);
  CHECK((odd.key_streams == 3 && odd.value_streams == 2));
  const UnitShape mixed = shape_of<Groups<1, 0>>(4);
  CHECK(mixed.units == 1);
  CHECK((mixed.key_streams == 4 && mixed.value_streams == 1));
}

TEST_CASE("groups that do not divide the heads are refused") {
  UnitShape shape;
  const Status s = divide_units<Groups<2, 1>>(3, &shape);
  CHECK(s.code == StatusCode::invalid_argument);
  CHECK(s.detail == 3);
  CHECK(std::string(s.text).find("head groups") != std::string::npos);
  CHECK_FALSE(divide_units<Groups<2, 3>>(4, &shape).ok());
  CHECK(shape.units == 0);
}

TEST_CASE("division is a constant expression") {
  constexpr auto units = [] {
    UnitShape s;
    return divide_units<PaluPerHead>(4, &s).ok() ? s.units : -1;
  };
  static_assert(units() == 4);
}
