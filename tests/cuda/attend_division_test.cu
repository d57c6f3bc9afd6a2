/// How thread blocks share a call: whatever their number, and whether sequences are equally long or
/// not, rows are those of the oracle, and every thread block's segments follow one another.
#include <initializer_list>

#include "terse/cuda/attend/work_division.cuh"

#include "cuda/attend_check.cuh"

using namespace terse;
using namespace terse::tests;

namespace {

using Dims = cuda::HeadDims<64, 128>;

/// Attends to `parts`, by `thread_blocks` thread blocks; those of 0 tokens are left out.
template <class D>
void check_parts(const D& d, const std::vector<StepPart>& parts,
                 std::initializer_list<int> thread_blocks, const AttendParams& params = {}) {
  std::vector<StepPart> own_parts;
  std::vector<float> queries;
  for (const StepPart& part : parts) {
    if (part.tokens == 0) continue;
    own_parts.push_back(part);
    const auto own = query_rows(d.shape(), 5, d.length(part.sequence) - part.tokens, part.tokens);
    queries.insert(queries.end(), own.begin(), own.end());
  }
  const auto view = d.cache.layer(0);
  const Attended slow =
      run_attend(view, {own_parts.data(), own_parts.size()}, queries, Path::oracle, params);
  REQUIRE(slow.status.ok());
  for (const int blocks : thread_blocks) {
    for (const bool settled : {false, true}) {
      INFO(parts.size() << " parts, " << blocks << " thread blocks, settled " << settled);
      DeviceCall<std::decay_t<decltype(view)>> call(view, d.buffers.view(),
                                                    {parts.data(), parts.size()}, queries, params);
      call.in.lengths_are_settled = settled;
      REQUIRE(call.template attend<Dims>(cuda::AttendLimits{.thread_blocks = blocks}).ok());
      CHECK(relative_l2(call.output.template to_host<float>(), slow.output) < device_tolerance);
      CHECK(largest_difference(call.lse.template to_host<float>(), slow.lse_ln) < 5e-3);
    }
  }
}

/// Three sequences of `lengths` with `rows` query rows each, by `thread_blocks` thread blocks.
template <class Policy>
void check_division(std::initializer_list<int> lengths, int rows,
                    std::initializer_list<int> thread_blocks, int head_dim = 64,
                    const AttendParams& params = {}) {
  Driver<PagedLayout<>, Policy> d(device_config(8, 2, head_dim, 2000));
  std::vector<StepPart> parts;
  for (const int length : lengths) {
    parts.push_back({d.create(), rows});
    REQUIRE(d.fill(parts.back().sequence, length, 128).ok());
  }
  INFO("rows " << rows);
  check_parts(d, parts, thread_blocks, params);
}

/// 300 short sequences, of which calls have the first `counts`. Four warps look at the lists of
/// entries together: beyond 128, each thread has several, one after another.
template <class Policy>
void check_many_lists(std::initializer_list<int> counts) {
  CacheConfig config = device_config(2, 1, 64, 192);
  config.max_sequences = 300;
  config.max_step_tokens = 70;
  for (const bool equal : {true, false}) {
    Driver<PagedLayout<>, Policy> d(config);
    std::vector<StepPart> parts;
    for (int i = 0; i < config.max_sequences; ++i) {
      const int length = equal ? 9 : (i % 41 == 7 ? 140 : 1 + i * 7 % 19);
      parts.push_back({d.create(), equal ? 1 : (i % 11 == 4 ? 0 : 1 + i % 3 % length)});
      REQUIRE(d.fill(parts.back().sequence, length, 70).ok());
    }
    for (const int count : counts) {
      check_parts(d, {parts.begin(), parts.begin() + count}, {0, 1, 7, 100});
    }
  }
}

/// As many as stretches, fewer, more, and numbers that divide nothing evenly.
constexpr std::initializer_list<int> all_counts = {1,  2,  3,  4,  5,  6,  7,  8,  9,  11,
                                                   12, 13, 17, 18, 23, 24, 31, 47, 64, 0};

}  // namespace

TEST_CASE("sequences of one length among any number of thread blocks", "[cuda][attend]") {
  if (!has_device()) TERSE_SKIP("no CUDA device");
  check_division<Int8>({1472, 1472, 1472}, 1, all_counts);
  check_division<Kivi2>({1472, 1472, 1472}, 1, all_counts);
}

TEST_CASE("sequences of unequal lengths among any number of thread blocks", "[cuda][attend]") {
  if (!has_device()) TERSE_SKIP("no CUDA device");
  check_division<Int8>({1999, 1, 700}, 1, all_counts);
  check_division<Kivi2>({65, 1900, 131}, 1, all_counts);
}

TEST_CASE("tiles of query rows among any number of thread blocks", "[cuda][attend]") {
  if (!has_device()) TERSE_SKIP("no CUDA device");
  check_division<Int8>({640, 640, 640}, 9, all_counts);
  check_division<Kivi2>({900, 70, 333}, 9, all_counts);
}

TEST_CASE("more lists than a thread block has threads", "[cuda][attend]") {
  if (!has_device()) TERSE_SKIP("no CUDA device");
  check_many_lists<Int8>({127, 128, 129, 256, 257, 300});
  check_many_lists<Kivi2>({128, 129, 300});
}

TEST_CASE("windows over blocks in two parts among any number of thread blocks", "[cuda][attend]") {
  if (!has_device()) TERSE_SKIP("no CUDA device");
  AttendParams params;
  params.sliding_window_tokens = 300;
  check_division<Int8>({1500, 1999, 333}, 1, {1, 2, 3, 7, 0}, 128, params);
  check_division<Identity>({1500, 1999, 333}, 1, {1, 2, 3, 7, 0}, 128, params);
  check_division<Identity>({1500, 5, 900}, 5, {1, 2, 3, 7, 0}, 128);
}

TEST_CASE("an even division begins stretches at its borders and costs no more", "[cuda]") {
  using cuda::detail::EvenDivision;
  int divided = 0;
  for (const int heads : {1, 2, 6, 8, 24, 64, 263, 264, 265, 512, 1000}) {
    for (const int places : {1, 3, 4, 5, 23, 64, 127, 128, 519}) {
      for (const int empty : {0, 1, 8, 32}) {
        for (const int grid : {1, 5, 132, 264}) {
          INFO(heads << " heads, " << places << " places, " << empty << " empty, grid " << grid);
          const EvenDivision even = EvenDivision::find(heads, places, empty, 4, grid);
          if (even.each == 0) continue;
          ++divided;
          const int stretch = places + even.empty;
          REQUIRE(even.empty < even.each);
          REQUIRE(ceil_div(heads * stretch, even.each) <= grid);
          REQUIRE((stretch % even.each == 0 || even.each % stretch == 0));
          // No thread block has more than an equal part of all that the line costs, and a stretch.
          REQUIRE(even.each <=
                  std::max(ceil_div(heads * (places + empty), grid) + empty, 4 + empty));
        }
      }
    }
  }
  CHECK(divided > 100);
  // 64 stretches of 519 places among 264 thread blocks: four each.
  CHECK(EvenDivision::find(64, 519, 26, 4, 264).each == 130);
  // Two whole ones each.
  CHECK(EvenDivision::find(512, 135, 26, 4, 264).each == 270);
}
