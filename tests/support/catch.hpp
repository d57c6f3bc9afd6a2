#pragma once

/// Catch2 for the tests, from v2 (one header) or v3 (many); write only what both have: TEST_CASE,
/// TEMPLATE_TEST_CASE, SECTION, REQUIRE, CHECK, INFO, CAPTURE, WARN, FAIL, GENERATE, Approx.

#if __has_include(<catch2/catch_test_macros.hpp>)
#include <catch2/catch_approx.hpp>
#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>
#include <catch2/catch_tostring.hpp>
#include <catch2/generators/catch_generators.hpp>
#include <catch2/generators/catch_generators_range.hpp>
using Catch::Approx;  // NOLINT(google-global-names-in-headers): v2 does the same
#else
#include <catch2/catch.hpp>
#endif

namespace terse_test {

/// Counts a skipped test case; main() then ends with `skip_exit_code` unless something failed.
void note_skip();

/// True where the environment says that this is a CI run (`CI` set to a non-empty value).
bool in_ci();

/// What ctest reads as "skipped".
inline constexpr int skip_exit_code = 77;

}  // namespace terse_test

/// Leaves the test case and reports the whole program as skipped. For what a machine cannot do,
/// such as an instruction set it lacks. Use it in the body of a TEST_CASE only: it returns.
#define TERSE_SKIP(reason)         \
  do {                             \
    WARN("skipped: " << (reason)); \
    ::terse_test::note_skip();     \
    return;                        \
  } while (false)

/// The same for what CI must provide, such as the model file: there it is a failure.
#define TERSE_SKIP_UNLESS_CI(reason)                   \
  do {                                                 \
    if (::terse_test::in_ci()) {                       \
      FAIL("must not be skipped in CI: " << (reason)); \
    }                                                  \
    TERSE_SKIP(reason);                                \
  } while (false)
