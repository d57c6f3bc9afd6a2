/// Attention on the device for head dimensions that are no power of two, and for 256.
#include "cuda/attend_check.cuh"

using namespace terse;
using namespace terse::tests;

namespace {

using OddDims = cuda::HeadDims<80, 96, 256>;

}  // namespace

TEMPLATE_TEST_CASE("odd head dimensions on the device", "[cuda][attend]", Kivi2, Kivi3, Int8,
                   Identity, TurboQuant4, NvFp4, ShapedTrellis3, ShapedTrellis2K1V) {
  if (!has_device()) TERSE_SKIP("no CUDA device");
  for (const int head_dim : {80, 96, 256}) {
    Driver<PagedLayout<>, TestType> d(device_config(8, 2, head_dim, 512));
    const SequenceId s = d.create();
    REQUIRE(d.fill(s, 333, 128).ok());
    for (const int rows : {1, 3}) check_rows<OddDims>(d, s, rows);
  }
}
