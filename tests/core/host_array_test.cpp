// Host memory that is allocated once.
#include "terse/core/host_array.hpp"

#include <utility>

#include "tests/support/catch.hpp"

using terse::HostArray;

TEST_CASE("elements begin as zero and can be written") {
  const HostArray<int> a(100);
  REQUIRE(a.data() != nullptr);
  int sum = 0;
  for (int i = 0; i < 100; ++i) sum += a[i];
  CHECK(sum == 0);
  a[99] = 5;
  CHECK(a.data()[99] == 5);
}

TEST_CASE("nothing is owned by default, and moving takes the memory along") {
  HostArray<int> a;
  CHECK(a.data() == nullptr);
  HostArray<int> b(3);
  int* const data = b.data();
  a = std::move(b);
  CHECK(a.data() == data);
  CHECK(HostArray<int>(0).data() != nullptr);
}

TEST_CASE("what cannot be allocated gives null instead of an exception") {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  SUCCEED("sanitizers end the program on huge allocations");
#else
  CHECK(HostArray<char>(std::int64_t{1} << 62).data() == nullptr);
#endif
}
