// Views of callers' tensors: strides and element types.
#include "terse/core/head_rows.hpp"

#include <vector>

#include "tests/support/catch.hpp"
#include "tests/support/random.hpp"

using namespace terse;

namespace {

constexpr int rows = 3, heads = 2, channels = 5;

float value_at(int row, int head, int channel) {
  return static_cast<float>(100 * row + 10 * head + channel);
}

std::size_t dense_index(int row, int head, int channel) {
  return static_cast<std::size_t>((row * heads + head) * channels + channel);
}

template <class T, class Convert>
void check_dense(Scalar scalar, Convert&& convert) {
  std::vector<T> tensor(rows * heads * channels);
  for (int r = 0; r < rows; ++r) {
    for (int h = 0; h < heads; ++h) {
      for (int c = 0; c < channels; ++c) tensor[dense_index(r, h, c)] = convert(value_at(r, h, c));
    }
  }
  const HeadRows view = HeadRows::dense(tensor.data(), scalar, heads, channels);
  float x[channels];
  for (int r = 0; r < rows; ++r) {
    for (int h = 0; h < heads; ++h) {
      view.load(r, h, channels, x);
      for (int c = 0; c < channels; ++c) CHECK(x[c] == value_at(r, h, c));
    }
  }
}

}  // namespace

TEST_CASE("dense tensors of every element type") {
  check_dense<float>(Scalar::f32, [](float v) { return v; });
  check_dense<F16>(Scalar::f16, [](float v) { return to_f16(v); });
  // bf16 has 8 bits: 205 and the like are exact.
  check_dense<BF16>(Scalar::bf16, [](float v) { return to_bf16(v); });
}

TEST_CASE("strides may leave gaps") {
  std::vector<float> tensor(rows * 40, -1.0f);
  for (int r = 0; r < rows; ++r) {
    for (int h = 0; h < heads; ++h) {
      for (int c = 0; c < channels; ++c) {
        tensor[static_cast<std::size_t>(r * 40 + h * 16 + c)] = value_at(r, h, c);
      }
    }
  }
  const HeadRows view(tensor.data(), Scalar::f32, 40, 16);
  float x[channels];
  view.load(2, 1, channels, x);
  for (int c = 0; c < channels; ++c) CHECK(x[c] == value_at(2, 1, c));
}

TEST_CASE("stores round to nearest and touch their vector only") {
  tests::Random random(1);
  const auto x = random.normals(channels);
  std::vector<F16> halves(rows * heads * channels, F16{0x1234});
  std::vector<BF16> brains(rows * heads * channels, BF16{0x1234});
  std::vector<float> floats(rows * heads * channels, -1.0f);
  MutableHeadRows::dense(halves.data(), Scalar::f16, heads, channels)
      .store(1, 1, channels, x.data());
  MutableHeadRows::dense(brains.data(), Scalar::bf16, heads, channels)
      .store(1, 1, channels, x.data());
  MutableHeadRows::dense(floats.data(), Scalar::f32, heads, channels)
      .store(1, 1, channels, x.data());
  for (std::size_t i = 0; i < halves.size(); ++i) {
    const std::size_t first = dense_index(1, 1, 0);
    const bool own = i >= first && i < first + channels;
    CHECK(halves[i].bits == (own ? to_f16(x[i - first]).bits : 0x1234));
    CHECK(brains[i].bits == (own ? to_bf16(x[i - first]).bits : 0x1234));
    CHECK(floats[i] == (own ? x[i - first] : -1.0f));
  }
}
