/// Decode attention on the host: one query token over a full cache, cold or warm, one or two
/// threads.
///
/// Each row is called attend/POLICY/HEADSxDIMxTOKENS/threads:N/cold|warm and carries the counters
/// stored_bytes (encoded blocks and exact tokens), bytes_per_second, bits_per_element and
/// ratio_to_16_bit (time of the identity policy on the same shape, threads and temperature, in the
/// same run, over this time). The 16-bit path is timed first.

#include <algorithm>
#include <chrono>
#include <map>
#include <string>
#include <vector>

#include <benchmark/benchmark.h>

#include "support/filled_cache.hpp"
#include "support/spin_pool.hpp"

namespace terse::bench {
namespace {

double seconds_since(std::chrono::steady_clock::time_point begin) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

/// One attend call after another on sequences in turn.
template <class Policy>
class Attention {
 public:
  Attention(const Shape& shape, int threads, bool cold)
      : cache_(shape, cold), pool_(threads), shape_(shape) {
    queries_.resize(static_cast<std::size_t>(shape.query_heads) *
                    static_cast<std::size_t>(shape.head_dim));
    for (std::size_t i = 0; i < queries_.size(); ++i) {
      queries_[i] = static_cast<float>(static_cast<int>(i * 37 % 101) - 50) / 25.0f;
    }
    output_.resize(queries_.size());
    const StepPart part{cache_.sequences().front(), 1};
    workspace_ =
        std::make_unique<AlignedBytes>(cpu::attend_workspace_bytes(cache_.ref(), {&part, 1}));
  }

  double run_once() {
    const StepPart part{cache_.sequences()[next_], 1};
    next_ = (next_ + 1) % cache_.sequences().size();
    const auto ref = cache_.ref();
    const AttendInputs in{
        {&part, 1},
        HeadRows::dense(queries_.data(), Scalar::f32, shape_.query_heads, shape_.head_dim)};
    const AttendOutputs out{
        MutableHeadRows::dense(output_.data(), Scalar::f32, shape_.query_heads, shape_.head_dim)};
    const auto begin = std::chrono::steady_clock::now();
    check(cpu::attend(ref, in, out, workspace_->span(), {}, pool_));
    return seconds_since(begin);
  }

  double median_seconds(int calls) {
    std::vector<double> seconds(static_cast<std::size_t>(calls));
    for (double& one : seconds) one = run_once();
    std::nth_element(seconds.begin(), seconds.begin() + calls / 2, seconds.end());
    return seconds[static_cast<std::size_t>(calls / 2)];
  }

  [[nodiscard]] const FilledCache<Policy>& cache() const { return cache_; }

 private:
  FilledCache<Policy> cache_;
  SpinPool pool_;
  Shape shape_;
  std::vector<float> queries_, output_;
  std::unique_ptr<AlignedBytes> workspace_;
  std::size_t next_ = 0;
};

/// Seconds of the 16-bit path by everything that a row has in common with it.
double sixteen_bit_seconds(const std::string& key, const Shape& shape, int threads, bool cold) {
  static std::map<std::string, double> known;
  const auto found = known.find(key);
  if (found != known.end()) return found->second;
  Attention<Identity> attention(shape, threads, cold);
  attention.median_seconds(4);
  return known[key] = attention.median_seconds(15);
}

template <class Policy>
void attend(benchmark::State& state, const std::string& key, const Shape& shape, int threads,
            bool cold) {
  const double plain = sixteen_bit_seconds(key, shape, threads, cold);
  Attention<Policy> attention(shape, threads, cold);
  attention.median_seconds(3);
  std::vector<double> seconds;
  for (auto _ : state) {
    const double one = attention.run_once();
    state.SetIterationTime(one);
    seconds.push_back(one);
  }
  std::nth_element(seconds.begin(), seconds.begin() + static_cast<long>(seconds.size() / 2),
                   seconds.end());
  const double median = seconds[seconds.size() / 2];
  const auto bytes = static_cast<double>(attention.cache().stored_bytes());
  state.counters["stored_bytes"] = bytes;
  state.counters["bytes_per_second"] = bytes / median;
  state.counters["bits_per_element"] = attention.cache().bits_per_element();
  state.counters["median_us"] = median * 1e6;
  state.counters["ratio_to_16_bit"] = plain / median;
  state.SetLabel(cold ? "cold" : "warm");
}

/// What a row's name says beside the policy.
std::string key_of(const Shape& shape, int threads, bool cold) {
  return std::to_string(shape.query_heads) + "/" + std::to_string(shape.kv_heads) + "x" +
         std::to_string(shape.head_dim) + "x" + std::to_string(shape.tokens) +
         "/threads:" + std::to_string(threads) + (cold ? "/cold" : "/warm");
}

template <class Policy>
void add(const std::string& policy) {
  const std::string prefix = "attend/" + policy + "/";
  const Shape shapes[] = {{9, 3, 64, 4096}, {32, 8, 128, 4096}, {32, 8, 128, 32768}};
  for (const Shape& shape : shapes) {
    for (const int threads : {1, 2}) {
      for (const bool cold : {true, false}) {
        const std::string key = key_of(shape, threads, cold);
        benchmark::RegisterBenchmark(
            (prefix + key).c_str(),
            [=](benchmark::State& state) { attend<Policy>(state, key, shape, threads, cold); })
            ->UseManualTime()
            ->Unit(benchmark::kMicrosecond)
            ->MinTime(0.2);
      }
    }
  }
}

}  // namespace
}  // namespace terse::bench

int main(int argc, char** argv) {
  using namespace terse;         // NOLINT: a program's main
  using namespace terse::bench;  // NOLINT
  add<Identity>("identity");
  add<Fp8>("fp8");
  add<Int8>("int8");
  add<Q8_0>("q8_0");
  add<Q4_0>("q4_0");
  add<Int4Rotated>("int4-rotated");
  add<Kivi4>("kivi-4");
  add<Kivi3>("kivi-3");
  add<Kivi2>("kivi-2");
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  benchmark::AddCustomContext("instruction_set", cpu::kernels().name);
  benchmark::AddCustomContext("terse_version", version_string);
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
  return 0;
}
