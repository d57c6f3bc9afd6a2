#include "evaluation/job_queue.hpp"

#include <stdexcept>
#include <string>

#include "support/catch.hpp"

using terse::examples::run_jobs;

TEST_CASE("every job runs once, for every thread count") {
  for (const int threads : {1, 2, 5}) {
    std::vector<std::atomic<int>> runs(20);
    std::vector<std::function<void()>> jobs;
    for (std::size_t i = 0; i < runs.size(); ++i) jobs.emplace_back([&runs, i] { ++runs[i]; });
    run_jobs(threads, jobs);
    for (const auto& count : runs) CHECK(count == 1);
  }
  run_jobs(3, {});
}

TEST_CASE("a job's exception reaches the caller and stops what has not begun") {
  int after = 0;
  const std::vector<std::function<void()>> jobs = {
      [] {}, [] { throw std::runtime_error("broken job"); }, [&after] { ++after; }};
  CHECK_THROWS_AS(run_jobs(1, jobs), std::runtime_error);
  CHECK(after == 0);
  CHECK_THROWS_AS(run_jobs(4, {jobs[1], jobs[1], jobs[1]}), std::runtime_error);
}
