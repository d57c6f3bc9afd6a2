/// Random calibrations on the host and on the device, well conditioned, with inverses in closed
/// form.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <limits>
#include <vector>

#include "terse/policy/calibration.hpp"
#include "terse/policy/record.hpp"

#include "cuda/device_memory.cuh"

namespace terse::tests {

/// Calibration of one stream: scaled reflections, a mean of keys that no token is far from, and
/// feedback whose entries that nobody is to read are NaN.
inline std::vector<float> calibration_of_reflections(Side side, int width, std::uint64_t seed) {
  Random random(seed);
  const auto n = static_cast<std::size_t>(width);
  std::vector<double> turn(n * n, 0.0);  // [channel, basis channel]
  for (std::size_t i = 0; i < n; ++i) turn[i * n + i] = 1.0;
  for (int reflection = 0; reflection < 3; ++reflection) {
    std::vector<double> axis(n);
    double square = 0;
    for (double& x : axis) {
      x = random.normal();
      square += x * x;
    }
    for (std::size_t row = 0; row < n; ++row) {
      double along = 0;
      for (std::size_t k = 0; k < n; ++k) along += turn[row * n + k] * axis[k];
      for (std::size_t k = 0; k < n; ++k) turn[row * n + k] -= 2 * along / square * axis[k];
    }
  }
  const CalibrationLayout at{width};
  std::vector<float> out(static_cast<std::size_t>(at.floats()));
  const auto place = [&](std::ptrdiff_t part, std::size_t i) -> float& {
    return out[static_cast<std::size_t>(part) + i];
  };
  for (std::size_t k = 0; k < n; ++k) {
    const double scale = 0.5 + 1.5 * random.uniform();
    place(at.mean(), k) = side == Side::key ? 2.0f + random.normal() : 0.0f;
    place(at.weight(), k) = static_cast<float>(0.2 + random.uniform());
    for (std::size_t c = 0; c < n; ++c) {
      const std::size_t back = side == Side::key ? c * n + k : k * n + c;
      place(at.to_basis(), c * n + k) = static_cast<float>(turn[c * n + k] * scale);
      place(at.from_basis(), back) = static_cast<float>(turn[c * n + k] / scale);
      place(at.feedback(), k * n + c) =
          c < k ? 0.1f * random.normal() : std::numeric_limits<float>::quiet_NaN();
    }
  }
  return out;
}

/// Those of `slots` slots of a cache, one stream of each side a KV head.
struct HostCalibration {
  std::vector<std::vector<float>> numbers;  ///< `[slot, {keys, values}]`
  std::vector<SlotCalibration> slots;

  int kv_heads, width;

  HostCalibration(int num_slots, int num_kv_heads, int head_dim)
      : kv_heads(num_kv_heads), width(head_dim) {
    for (int i = 0; i < 2 * num_slots; ++i) {
      std::vector<float>& own = numbers.emplace_back();
      for (int head = 0; head < kv_heads; ++head) {
        const auto stream =
            calibration_of_reflections(i % 2 == 0 ? Side::key : Side::value, width,
                                       static_cast<std::uint64_t>(i * kv_heads + head));
        own.insert(own.end(), stream.begin(), stream.end());
      }
    }
    for (std::size_t i = 0; i < numbers.size(); i += 2) {
      slots.push_back({numbers[i].data(), numbers[i + 1].data()});
    }
  }
  HostCalibration(const HostCalibration&) = delete;
  HostCalibration& operator=(const HostCalibration&) = delete;
  [[nodiscard]] CalibrationView view() const {
    return {{slots.data(), slots.size()}, kv_heads, width, 77};
  }
};

/// A calibration that the host has, and a copy that the device has, `shift` floats from where it
/// would be aligned.
struct TwinCalibration {
  HostCalibration host;
  std::deque<DeviceBytes> numbers;
  std::vector<SlotCalibration> slots;

  TwinCalibration(int num_slots, int kv_heads, int width, std::size_t shift = 0)
      : host(num_slots, kv_heads, width) {
    const auto copy = [&](std::vector<float> from) {
      from.insert(from.begin(), shift, 0.0f);
      return numbers.emplace_back(DeviceBytes::copy_of(from.data(), from.size())).as<float>() +
             shift;
    };
    for (std::size_t i = 0; i < host.numbers.size(); i += 2) {
      const float* keys = copy(host.numbers[i]);
      slots.push_back({keys, copy(host.numbers[i + 1])});
    }
  }
  [[nodiscard]] CalibrationView on_device() const {
    CalibrationView view = host.view();
    view.slots = {slots.data(), slots.size()};
    return view;
  }
};

}  // namespace terse::tests
