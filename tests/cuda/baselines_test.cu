/// Codecs that one thread of a device encodes a block by, and one that many encode, a token each:
/// the bytes of the host, and attention through their `decode` against the oracle.
#include <string>

#include "cuda/attend_check.cuh"
#include "cuda/twin.cuh"
#include "cuda/twin_calibration.cuh"

using namespace terse;
using namespace terse::tests;

namespace {

template <class P>
void run(std::uint64_t seed, int head_dim) {
  INFO("head dimension " << head_dim);
  Twin<PagedLayout<>, P> twin(two_layers(head_dim));
  TwinRun<Twin<PagedLayout<>, P>> calls(twin, seed);
  REQUIRE(calls.go(40) == "");
}

template <class P>
void check_attention() {
  using Ref = KVCacheRef<PagedLayout<>, PolicyOf<P>>;
  CHECK(std::string(cuda::key_kernel_name<Ref, 64>()) == "decode");
  check_few_rows<P>();
}

}  // namespace

TEST_CASE("blocks that one thread encodes on host and device", "[cuda][twin]") {
  if (!has_device()) TERSE_SKIP("no CUDA device");
  run<KVarN4K2V>(1, 64);
  run<KVarN2>(2, 36);
  run<KVQuant3>(3, 64);
  run<KVQuant2>(4, 36);
}

TEST_CASE("steps searched for each token on host and device", "[cuda][calibrated]") {
  if (!has_device()) TERSE_SKIP("no CUDA device");
  for (const int head_dim : {64, 80}) {
    INFO("head dimension " << head_dim);
    const TwinCalibration calibration(2, 2, head_dim);
    PolicyConfig<PolicyOf<Shaped4Searched>> policy, on_device;
    policy.calibration = calibration.host.view();
    on_device.calibration = calibration.on_device();
    Twin<PagedLayout<>, Shaped4Searched> twin(two_layers(head_dim), {policy}, {on_device});
    TwinRun<Twin<PagedLayout<>, Shaped4Searched>> calls(twin, 5);
    REQUIRE(calls.go(40) == "");
  }
}

TEST_CASE("attention to codecs that no reader knows", "[cuda][attend]") {
  if (!has_device()) TERSE_SKIP("no CUDA device");
  check_attention<KVarN4K2V>();
  check_attention<KVQuant3>();
  check_attention<TurboQuantProd3>();
}
