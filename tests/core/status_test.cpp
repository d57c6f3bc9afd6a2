// Errors as values.
#include "terse/core/status.hpp"

#include <string>

#include "tests/support/catch.hpp"

using namespace terse;

namespace {

/// Counts living objects.
struct Counted {
  static inline int alive = 0;
  int value = 0;
  explicit Counted(int v) : value(v) { ++alive; }
  Counted(Counted&& other) noexcept : value(other.value) { ++alive; }
  Counted(const Counted&) = delete;
  ~Counted() { --alive; }
};

}  // namespace

TEST_CASE("a default status is ok, an error holds code, text and detail") {
  CHECK(Status{}.ok());
  const Status s = error(StatusCode::no_free_pages, "text", 7);
  CHECK_FALSE(s.ok());
  CHECK(s.code == StatusCode::no_free_pages);
  CHECK(std::string(s.text) == "text");
  CHECK(s.detail == 7);
}

TEST_CASE("an expected value") {
  Expected<int> x = 5;
  REQUIRE(x.ok());
  CHECK(x.status().ok());
  CHECK(*x == 5);
  *x = 6;
  CHECK(*x == 6);
}

TEST_CASE("an expected value that is not there") {
  const Expected<int> x = error(StatusCode::unsupported, "why");
  CHECK_FALSE(x.ok());
  CHECK_FALSE(static_cast<bool>(x));
  CHECK(x.status().code == StatusCode::unsupported);
}

TEST_CASE("values are moved and destroyed exactly once") {
  {
    Expected<Counted> a = Counted(3);
    CHECK(Counted::alive == 1);
    Expected<Counted> b = std::move(a);
    CHECK(b->value == 3);
    Expected<Counted> none = error(StatusCode::unsupported, "none");
    const Expected<Counted> moved = std::move(none);
    CHECK_FALSE(moved.ok());
  }
  CHECK(Counted::alive == 0);
}
