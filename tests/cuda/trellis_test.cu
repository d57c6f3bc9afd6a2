/// Codes of a trellis, which a warp finds for a vector: the bytes of the host, with a calibration
/// and without, and attention against the oracle.
#include <string>

#include "cuda/columns_check.cuh"
#include "cuda/device_pages.cuh"
#include "cuda/twin_calibration.cuh"

using namespace terse;
using namespace terse::tests;

namespace {

/// Without a tail: every token is encoded in its own step.
using OpenTrellis = KeyValue<ShapedTrellis2::key_codec, ShapedTrellis2::value_codec>;

/// Random calls on both, with a calibration or without.
template <class P>
void run(std::uint64_t seed, int head_dim, bool is_calibrated) {
  INFO("head dimension " << head_dim << (is_calibrated ? ", calibrated" : ""));
  PolicyConfig<PolicyOf<P>> policy;
  if constexpr (!std::is_same_v<P, OpenTrellis>) {
    policy.tail = TailSpec{.min_tokens = 20, .sink_tokens = 5};
  }
  const TwinCalibration calibration(2, 2, head_dim);
  PolicyConfig<PolicyOf<P>> on_device = policy;
  if (is_calibrated) {
    policy.calibration = calibration.host.view();
    on_device.calibration = calibration.on_device();
  }
  Twin<PagedLayout<>, P> twin(two_layers(head_dim), {policy}, {on_device});
  TwinRun<Twin<PagedLayout<>, P>> calls(twin, seed);
  REQUIRE(calls.go(40) == "");
}

template <class P>
void check_attention() {
  const HostCalibration calibration(1, 2, 64);
  PolicyConfig<PolicyOf<P>> policy{.tail = TailSpec{.min_tokens = 20, .sink_tokens = 5}};
  policy.calibration = calibration.view();
  check_few_rows<P>(policy);
}

}  // namespace

TEST_CASE("codes of a trellis on host and device", "[cuda][calibrated]") {
  if (!has_device()) TERSE_SKIP("no CUDA device");
  run<ShapedTrellis2>(1, 64, true);
  run<ShapedTrellis2>(2, 80, true);
  run<ShapedTrellis2>(3, 64, false);
  run<ShapedTrellis2K1V>(4, 64, true);
  run<ShapedTrellis3K2V>(5, 64, true);
  run<ShapedTrellis4>(6, 64, false);
  run<ShapedTrellis2>(7, 128, true);
  run<OpenTrellis>(8, 36, true);
  run<OpenTrellis>(9, 128, false);
  run<OpenTrellis>(11, 100, true);
  run<ShapedTrellis2>(10, 256, true);
}

TEST_CASE("attention to codes of a calibrated trellis against the oracle", "[cuda][calibrated]") {
  if (!has_device()) TERSE_SKIP("no CUDA device");
  using Ref = KVCacheRef<PagedLayout<>, PolicyOf<ShapedTrellis4>>;
  CHECK(std::string(cuda::key_kernel_name<Ref, 64>()) == "decode");
  check_attention<ShapedTrellis4>();
  check_attention<ShapedTrellis3K2V>();
  check_attention<ShapedTrellis2>();
}
