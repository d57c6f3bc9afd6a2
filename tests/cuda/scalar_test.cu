/// The device's conversions against the host's: all 16-bit patterns, and floats near every
/// rounding.
#include <cmath>
#include <cstring>
#include <vector>

#include "terse/core/math.hpp"
#include "terse/core/scalar.hpp"
#include "terse/quant/fp8.hpp"

#include "cuda/device_memory.cuh"
#include "support/catch.hpp"
#include "support/random.hpp"

using namespace terse;
using namespace terse::tests;

namespace {

struct Converted {
  std::uint16_t f16, saturated, bf16;
  std::uint8_t e4m3;
  float from_f16, from_bf16, quotient, by_inverse, whole, odds;
};

TERSE_HOST_DEVICE Converted convert(float x, float y, unsigned bits) {
  Converted c{};
  c.f16 = to_f16(x).bits;
  c.saturated = to_f16_saturating(x).bits;
  c.bf16 = to_bf16(x).bits;
  c.e4m3 = to_e4m3(x);
  c.from_f16 = to_float(F16{static_cast<std::uint16_t>(bits)});
  c.from_bf16 = to_float(BF16{static_cast<std::uint16_t>(bits)});
  c.quotient = rounded_quotient(x, y);
  // Steps of codes: scales are fp16 numbers, or as large as those.
  const float step =
      to_float(F16{static_cast<std::uint16_t>(bits % 0x7c00)}) * (1.0f + (bits >> 16));
  c.by_inverse = quotient_by_inverse(x, step, step == 0.0f ? 0.0f : rounded_quotient(1.0f, step));
  c.whole = whole_half_even(clamp(x, -4e6f, 4e6f));
  // Probabilities from the smallest to the largest, dense at both ends.
  const float part = static_cast<float>(bits % 0x10000 + 1) / 65537.0f;
  c.odds = log_odds((bits >> 16) % 2 == 0 ? part : part * 1e-4f);
  return c;
}

__global__ void convert_all(const float* x, Converted* out, int count) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i < count) out[i] = convert(x[i], x[count - 1 - i], static_cast<unsigned>(i));
}

bool same(float a, float b) {
  return std::memcmp(&a, &b, sizeof a) == 0 || (std::isnan(a) && std::isnan(b));
}

}  // namespace

TEST_CASE("conversions are the same on host and device", "[cuda][scalar]") {
  if (!has_device()) TERSE_SKIP("no CUDA device");
  std::vector<float> x;
  Random random(3);
  for (unsigned bits = 0; bits < 0x10000; ++bits) {
    const float half = to_float(F16{static_cast<std::uint16_t>(bits)});
    if (std::isnan(half)) continue;
    // The number, and floats near the middle between it and its neighbour.
    const float next = to_float(F16{static_cast<std::uint16_t>(bits + 1)});
    const float middle =
        std::isfinite(next) && std::isfinite(half) ? half + (next - half) / 2 : half;
    for (const float v : {half, middle, std::nextafter(middle, 1e30f),
                          std::nextafter(middle, -1e30f), random.normal() * 1e5f}) {
      x.push_back(v);
    }
  }
  const auto count = static_cast<int>(x.size());
  const DeviceBytes input = DeviceBytes::copy_of(x.data(), x.size());
  const DeviceBytes output(x.size() * sizeof(Converted));
  convert_all<<<(count + 255) / 256, 256>>>(input.as<float>(), output.as<Converted>(), count);
  REQUIRE(cudaDeviceSynchronize() == cudaSuccess);
  const auto device = output.to_host<Converted>();
  int wrong = 0;
  for (int i = 0; i < count; ++i) {
    const auto n = static_cast<std::size_t>(i);
    const Converted host =
        convert(x[n], x[static_cast<std::size_t>(count - 1 - i)], static_cast<unsigned>(i));
    const Converted& own = device[n];
    const bool equal =
        host.f16 == own.f16 && host.saturated == own.saturated && host.bf16 == own.bf16 &&
        host.e4m3 == own.e4m3 && same(host.from_f16, own.from_f16) &&
        same(host.from_bf16, own.from_bf16) && same(host.quotient, own.quotient) &&
        same(host.whole, own.whole) && same(host.odds, own.odds) &&
        (!(std::fabs(x[n]) < 1e30f) || same(host.by_inverse, own.by_inverse) ||
         (std::fabs(host.by_inverse) < 1e-30f && std::fabs(own.by_inverse) < 1e-30f));
    wrong += equal ? 0 : 1;
  }
  CHECK(count > 300000);
  CHECK(wrong == 0);
}
