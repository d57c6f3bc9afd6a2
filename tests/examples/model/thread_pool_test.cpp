#include "thread_pool.hpp"

#include <atomic>
#include <stdexcept>
#include <vector>

#include "support/catch.hpp"

using terse::examples::ThreadPool;

TEST_CASE("a loop visits every index once") {
  for (const int threads : {-1, 0, 1, 2, 5}) {
    ThreadPool pool(threads);
    CHECK(pool.threads() == (threads < 1 ? 1 : threads));
    for (const int count : {0, 1, 3, 1000}) {
      std::vector<std::atomic<int>> visits(static_cast<std::size_t>(count));
      pool.parallel_for(count, [&](int i) { visits[static_cast<std::size_t>(i)].fetch_add(1); });
      bool once = true;
      for (const auto& visit : visits) {
        once = once && visit.load() == 1;
      }
      CHECK(once);
    }
  }
}

TEST_CASE("many short loops follow each other") {
  ThreadPool pool(3);
  long total = 0;
  for (int loop = 0; loop < 2000; ++loop) {
    std::vector<int> parts(7);
    pool.parallel_for(7, [&](int i) { parts[static_cast<std::size_t>(i)] = i + loop; });
    for (const int part : parts) {
      total += part;
    }
  }
  CHECK(total == 2000L * 21 + 7L * (1999L * 2000 / 2));
}

TEST_CASE("an exception of a body reaches the caller and the pool stays usable") {
  ThreadPool pool(3);
  for (const int bad : {0, 50, 99}) {
    CHECK_THROWS_AS(pool.parallel_for(100,
                                      [&](int i) {
                                        if (i == bad) {
                                          throw std::runtime_error("bad");
                                        }
                                      }),
                    std::runtime_error);
    std::atomic<int> sum{0};
    pool.parallel_for(10, [&](int i) { sum.fetch_add(i); });
    CHECK(sum.load() == 45);
  }
}
