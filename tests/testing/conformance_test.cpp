// The header that users include: both checks, without a test framework.
#include "terse/testing/conformance.hpp"

#include "terse/evict/streaming_llm.hpp"
#include "terse/quant/int4_rotated.hpp"

#include "tests/support/catch.hpp"

TEST_CASE("both checks come with one header") {
  CHECK(terse::testing::check_codec<terse::Int4Rotated>(128).failure.empty());
  CHECK(terse::testing::check_evictor<terse::StreamingLLM>({}).failure.empty());
}
