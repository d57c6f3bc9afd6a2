/// Attention against the fp64 oracle over head dimensions, query groups, element types and strides,
/// with every kernel table of this machine.
#include <vector>

#include "support/cache_driver.hpp"
#include "support/catch.hpp"

using namespace terse;
using namespace terse::tests;

namespace {

std::vector<const cpu::KernelTable*> tables() {
  std::vector<const cpu::KernelTable*> found;
  for (const char* name : {"portable", "avx2", "avx512"}) {
    if (const cpu::KernelTable* table = cpu::kernels_named(name)) found.push_back(table);
  }
  return found;
}

CacheConfig config(int query_heads, int kv_heads, int head_dim) {
  return {.num_layers = 1,
          .num_query_heads = query_heads,
          .num_kv_heads = kv_heads,
          .head_dim = head_dim,
          .max_sequences = 2,
          .max_tokens = 256,
          .max_step_tokens = 128};
}

template <class P>
void check_rows(Driver<PagedLayout<>, P>& d, SequenceId s, int rows) {
  const Attended slow = d.attend(s, rows, Path::oracle);
  REQUIRE(slow.status.ok());
  const StepPart part{s, rows};
  const auto queries = query_rows(d.shape(), 5, d.length(s) - rows, rows);
  for (const cpu::KernelTable* table : tables()) {
    const Attended fast =
        run_attend(d.cache.layer(0), {&part, 1}, queries, Path::vectorised, {}, false, *table);
    INFO(table->name << ", " << rows << " rows of " << d.shape().query_heads << " heads of "
                     << d.shape().head_dim);
    REQUIRE(fast.status.ok());
    CHECK(relative_l2(fast.output, slow.output) < 1e-5);
    CHECK(relative_l2(fast.lse_ln, slow.lse_ln) < 1e-5);
  }
}

/// `count` numbers as `scalar`, `row_stride` apart in runs of `channels`.
struct Strided {
  std::vector<std::uint16_t> halves;
  std::vector<float> floats;
  HeadRows view;
};

Strided strided(const std::vector<float>& x, Scalar scalar, int heads, int channels, int head_gap,
                int row_gap) {
  Strided s;
  const std::size_t rows = x.size() / static_cast<std::size_t>(heads * channels);
  const std::int64_t head_stride = channels + head_gap;
  const std::int64_t row_stride = head_stride * heads + row_gap;
  const std::size_t size = rows * static_cast<std::size_t>(row_stride);
  s.floats.assign(scalar == Scalar::f32 ? size : 0, NAN);
  s.halves.assign(scalar == Scalar::f32 ? 0 : size, 0x7fff);  // NaN in both 16-bit formats
  for (std::size_t i = 0; i < x.size(); ++i) {
    const std::size_t c = i % static_cast<std::size_t>(channels);
    const std::size_t h = i / static_cast<std::size_t>(channels) % static_cast<std::size_t>(heads);
    const std::size_t row = i / static_cast<std::size_t>(heads * channels);
    const std::size_t at =
        row * static_cast<std::size_t>(row_stride) + h * static_cast<std::size_t>(head_stride) + c;
    if (scalar == Scalar::f32) s.floats[at] = x[i];
    if (scalar == Scalar::f16) s.halves[at] = to_f16(x[i]).bits;
    if (scalar == Scalar::bf16) s.halves[at] = to_bf16(x[i]).bits;
  }
  const void* data = scalar == Scalar::f32 ? static_cast<const void*>(s.floats.data())
                                           : static_cast<const void*>(s.halves.data());
  s.view = {data, scalar, row_stride, head_stride};
  return s;
}

std::vector<float> rounded(std::vector<float> x, Scalar scalar) {
  for (float& v : x) {
    if (scalar == Scalar::f16) v = to_float(to_f16(v));
    if (scalar == Scalar::bf16) v = to_float(to_bf16(v));
  }
  return x;
}

}  // namespace

TEMPLATE_TEST_CASE("head dimensions and query groups", "[attend][shapes]", Identity, Fp8, Int8,
                   Int4Rotated, Q8_0, Q4_0, Kivi2, Kivi3, Kivi4, TurboQuant3, NvFp4) {
  for (const int head_dim : {64, 80, 96, 128, 256}) {
    for (const int group : {1, 2, 3, 4, 8, 16}) {
      if (head_dim != 64 && group != 1 && group != 4) continue;
      Driver<PagedLayout<>, TestType> d(config(2 * group, 2, head_dim));
      const SequenceId s = d.create();
      REQUIRE(d.fill(s, 129, 128).ok());
      for (const int rows : {1, 2, 5}) check_rows(d, s, rows);
    }
  }
}

TEMPLATE_TEST_CASE("lengths around every boundary", "[attend][shapes]", Identity, Fp8, Int8,
                   Int4Rotated, Q8_0, Q4_0, Kivi2, Kivi3, Kivi4) {
  CacheConfig c = config(3, 1, 64);
  c.max_tokens = 1100;
  Driver<PagedLayout<>, TestType> d(c);
  const SequenceId s = d.create();
  for (const int length : {1, 15, 16, 17, 63, 64, 65, 127, 128, 129, 999, 1000, 1001, 1025}) {
    REQUIRE(d.fill(s, length, 100).ok());
    check_rows(d, s, 1);
    check_rows(d, s, std::min(length, 20));
    if (length <= 129) check_rows(d, s, std::min(length, 128));
  }
}

TEST_CASE("inputs of every type and any stride store the same codes", "[attend][shapes]") {
  for (const Scalar scalar : {Scalar::f32, Scalar::f16, Scalar::bf16}) {
    Driver<PagedLayout<>, Kivi4> dense(config(4, 2, 64)), gaps(config(4, 2, 64));
    const SequenceId s = dense.create();
    REQUIRE(gaps.create() == s);
    const StepPart part{s, 100};
    TokenRows rows = token_rows(dense.shape(), 1, 0, 0, 100);
    rows.keys = rounded(rows.keys, scalar);
    rows.values = rounded(rows.values, scalar);
    REQUIRE(dense.cache.begin_step({&part, 1}).ok());
    REQUIRE(dense.cache.append(0, append_inputs(dense.shape(), rows)).ok());
    REQUIRE(gaps.cache.begin_step({&part, 1}).ok());
    const Strided keys = strided(rows.keys, scalar, 2, 64, 6, 10);
    const Strided values = strided(rows.values, scalar, 2, 64, 0, 34);
    REQUIRE(gaps.cache.append(0, {keys.view, values.view}).ok());
    CHECK(dense.buffers.pages == gaps.buffers.pages);
    CHECK(dense.buffers.tails == gaps.buffers.tails);
  }
}

TEST_CASE("outputs of 16 bits are within 2e-3, strided ones leave the gaps alone",
          "[attend][shapes]") {
  Driver<PagedLayout<>, Int4Rotated> d(config(4, 2, 80));
  const SequenceId s = d.create();
  REQUIRE(d.fill(s, 130, 128).ok());
  const StepPart part{s, 3};
  const auto r = d.cache.layer(0);
  for (const Scalar in : {Scalar::f32, Scalar::f16, Scalar::bf16}) {
    const auto queries = rounded(query_rows(d.shape(), 5, 127, 3), in);
    const Attended exact = run_attend(r, {&part, 1}, queries, Path::oracle);
    const Strided q = strided(queries, in, 4, 80, 3, 7);
    for (const Scalar out : {Scalar::f32, Scalar::f16, Scalar::bf16}) {
      const std::int64_t head_stride = 85, row_stride = 4 * head_stride + 9;
      std::vector<float> floats(static_cast<std::size_t>(3 * row_stride), 42.0f);
      std::vector<std::uint16_t> halves(floats.size(), 0x1234);
      void* data = out == Scalar::f32 ? static_cast<void*>(floats.data()) : halves.data();
      AlignedBytes workspace(cpu::attend_workspace_bytes(r, {&part, 1}));
      const AttendInputs inputs{{&part, 1}, q.view};
      const AttendOutputs outputs{{data, out, row_stride, head_stride}};
      REQUIRE(cpu::attend(r, inputs, outputs, workspace.span()).ok());
      std::vector<float> got;
      std::size_t untouched = 0;
      for (std::int64_t i = 0; i < 3 * row_stride; ++i) {
        const auto at = static_cast<std::size_t>(i);
        const std::int64_t in_row = i % row_stride;
        if (in_row < 4 * head_stride && in_row % head_stride < 80) {
          got.push_back(out == Scalar::f32   ? floats[at]
                        : out == Scalar::f16 ? to_float(F16{halves[at]})
                                             : to_float(BF16{halves[at]}));
        } else {
          untouched += floats[at] == 42.0f && halves[at] == 0x1234 ? 1 : 0;
        }
      }
      CHECK(untouched == static_cast<std::size_t>(3 * (row_stride - 4 * 80)));
      CHECK(relative_l2(got, exact.output) < (out == Scalar::f32 ? 1e-5 : 2e-3));
    }
  }
}

TEST_CASE("ragged parts give what each gives alone", "[attend][shapes]") {
  Driver<PagedLayout<>, Kivi2> d(config(6, 2, 64));
  const SequenceId a = d.create(), b = d.create();
  REQUIRE(d.fill(a, 200, 100).ok());
  REQUIRE(d.fill(b, 70, 70).ok());
  const StepPart parts[] = {{b, 2}, {a, 7}};
  auto queries = query_rows(d.shape(), 5, 68, 2);
  const auto more = query_rows(d.shape(), 5, 193, 7);
  queries.insert(queries.end(), more.begin(), more.end());
  const Attended both = run_attend(d.cache.layer(0), parts, queries, Path::vectorised);
  const Attended first = d.attend(b, 2), second = d.attend(a, 7);
  std::vector<float> joined = first.output;
  joined.insert(joined.end(), second.output.begin(), second.output.end());
  CHECK(same_bits(both.output, joined));
}
