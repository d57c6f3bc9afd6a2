#if __has_include(<catch2/catch_session.hpp>)
#include <catch2/catch_session.hpp>
#include <catch2/reporters/catch_reporter_event_listener.hpp>
#include <catch2/reporters/catch_reporter_registrars.hpp>
using ListenerBase = Catch::EventListenerBase;
#else
#define CATCH_CONFIG_RUNNER
#include <catch2/catch.hpp>
using ListenerBase = Catch::TestEventListenerBase;
#endif

#include <atomic>
#include <cstdlib>
#include <iostream>

#include "support/catch.hpp"

namespace terse_test {
namespace {

std::atomic<int> skipped{0};
int finished = 0;

class CountTestCases : public ListenerBase {
 public:
  using ListenerBase::ListenerBase;
  void testCaseEnded(const Catch::TestCaseStats& stats) override {
    ListenerBase::testCaseEnded(stats);
    ++finished;
  }
};

CATCH_REGISTER_LISTENER(CountTestCases)

}  // namespace

void note_skip() { skipped.fetch_add(1); }

bool in_ci() {
  const char* value = std::getenv("CI");
  return value != nullptr && *value != '\0';
}

}  // namespace terse_test

int main(int argc, char** argv) {
  Catch::Session session;
  // A fixed seed: tests are deterministic from run to run.
  session.configData().rngSeed = 1;
  if (const int error = session.applyCommandLine(argc, argv); error != 0) {
    return error;
  }
  const int failed = session.run();
  if (failed != 0) {
    return failed;
  }
  if (terse_test::finished == 0) {
    std::cerr << "no test case ran\n";
    return 1;
  }
  return terse_test::skipped.load() > 0 ? terse_test::skip_exit_code : 0;
}
