/// Attention on the device for head dimensions that are no power of two, and for 256.
#include "cuda/attend_check.cuh"

using namespace terse;
using namespace terse::tests;

namespace {

using OddDims = cuda::HeadDims<80, 96, 256>;

CacheConfig config(int query_heads, int kv_heads, int head_dim, int max_tokens) {
  return {.num_layers = 1,
          .num_query_heads = query_heads,
          .num_kv_heads = kv_heads,
          .head_dim = head_dim,
          .max_sequences = 3,
          .max_tokens = max_tokens,
          .max_step_tokens = 128};
}

}  // namespace

TEMPLATE_TEST_CASE("odd head dimensions on the device", "[cuda][attend]", Kivi2, Int8, Identity) {
  if (!has_device()) TERSE_SKIP("no CUDA device");
  for (const int head_dim : {80, 96, 256}) {
    Driver<PagedLayout<>, TestType> d(config(8, 2, head_dim, 512));
    const SequenceId s = d.create();
    REQUIRE(d.fill(s, 333, 128).ok());
    for (const int rows : {1, 3}) check_rows<OddDims>(d, s, rows);
  }
}
