// Rotations alone change nothing: 16-bit elements in any basis attend like 16-bit elements.
#include <type_traits>
#include <vector>

#include "terse/policy/identity.hpp"
#include "terse/quant/affine_group.hpp"
#include "terse/quant/hadamard.hpp"

#include "support/cache_driver.hpp"
#include "support/catch.hpp"

using namespace terse;
using namespace terse::tests;

namespace {

template <int Limit>
using Rotated = InBasis<Identity, HadamardBasis<Limit>>;

CacheConfig config(int head_dim) {
  return {.num_layers = 1,
          .num_query_heads = 4,
          .num_kv_heads = 2,
          .head_dim = head_dim,
          .max_sequences = 1,
          .max_tokens = 256,
          .max_step_tokens = 64};
}

template <class P>
void check(int head_dim, std::optional<TailSpec> tail = {}) {
  PolicyConfig<PolicyOf<P>> policy;
  policy.tail = tail;
  Driver<PagedLayout<>, Identity> plain(config(head_dim));
  Driver<PagedLayout<>, P> rotated(config(head_dim), policy);
  const SequenceId s = plain.create();
  REQUIRE(rotated.create() == s);
  REQUIRE(plain.fill(s, 200, 64).ok());
  REQUIRE(rotated.fill(s, 200, 64).ok());
  for (const Path path : {Path::vectorised, Path::oracle}) {
    const Attended a = rotated.attend(s, 3, path), b = plain.attend(s, 3, path);
    REQUIRE(a.status.ok());
    INFO("head dimension " << head_dim);
    // Both round to fp16 once, in different coordinates.
    CHECK(relative_l2(a.output, b.output) < 1e-3);
    CHECK(relative_l2(a.lse_ln, b.lse_ln) < 1e-3);
    CHECK_FALSE(a.output == b.output);
  }
}

}  // namespace

TEST_CASE("attention over rotated 16-bit keys and values is that over plain ones") {
  for (const int head_dim : {64, 80, 96, 128}) {
    check<Rotated<256>>(head_dim);
    check<Rotated<16>>(head_dim);
  }
  check<KeyValue<Rotated<64>, Identity>>(64);
  check<KeyValue<Identity, Rotated<64>>>(64);
}

TEST_CASE("tails and exact sinks lie in the same basis") {
  check<Rotated<64>>(64, TailSpec{.min_tokens = 40, .granule_tokens = 64, .sink_tokens = 4});
}
