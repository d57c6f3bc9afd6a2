/// How fast this machine reads memory in one long sweep with plain loads: what attention's bytes
/// per second stand beside.

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <string>
#include <vector>

#include <benchmark/benchmark.h>

#include "support/filled_cache.hpp"
#include "support/spin_pool.hpp"

namespace terse::bench {
namespace {

/// Sum of a range of words, in enough partial sums to keep the loads busy.
std::uint64_t sum_words(const std::uint64_t* words, std::size_t count) {
  std::uint64_t sums[16] = {};
  for (std::size_t i = 0; i + 16 <= count; i += 16) {
    for (std::size_t k = 0; k < 16; ++k) sums[k] += words[i + k];
  }
  std::uint64_t sum = 0;
  for (const std::uint64_t s : sums) sum += s;
  return sum;
}

void read_rate(benchmark::State& state) {
  constexpr std::size_t words = 4 * cold_bytes / sizeof(std::uint64_t);
  const std::vector<std::uint64_t> memory(words, 1);
  const auto threads = static_cast<int>(state.range(0));
  SpinPool pool(threads);
  const std::size_t share = words / static_cast<std::size_t>(threads);
  std::vector<double> rates;
  for (auto _ : state) {
    std::vector<std::uint64_t> sums(static_cast<std::size_t>(threads));
    const auto begin = std::chrono::steady_clock::now();
    pool(threads, [&](int i) {
      const auto part = static_cast<std::size_t>(i);
      sums[part] = sum_words(memory.data() + part * share, share);
    });
    const double seconds =
        std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    benchmark::DoNotOptimize(sums.data());
    state.SetIterationTime(seconds);
    rates.push_back(static_cast<double>(words * sizeof(std::uint64_t)) / seconds);
  }
  const auto middle = rates.begin() + static_cast<std::ptrdiff_t>(rates.size() / 2);
  std::nth_element(rates.begin(), middle, rates.end());
  state.counters["bytes_per_second"] = *middle;
}
BENCHMARK(read_rate)->ArgName("threads")->Arg(1)->Arg(2)->UseManualTime()->MinTime(0.5);

}  // namespace
}  // namespace terse::bench

BENCHMARK_MAIN();
