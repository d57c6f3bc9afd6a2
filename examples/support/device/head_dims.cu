#include <string>

#include "device/head_dims.cuh"
#include "evaluation/device.hpp"
#include "report/input_error.hpp"

namespace terse::examples {

namespace {

template <int... Dims>
[[nodiscard]] bool is_among(cuda::HeadDims<Dims...>, int head_dim) {
  return (... || (head_dim == Dims));
}

template <int... Dims>
[[nodiscard]] std::string list(cuda::HeadDims<Dims...>) {
  std::string text;
  ((text += text.empty() ? std::to_string(Dims) : ", " + std::to_string(Dims)), ...);
  return text;
}

}  // namespace

void check_on_device(const LlamaConfig& model) {
  constexpr DeviceHeadDims compiled;
  if (is_among(compiled, model.head_dim)) return;
  throw InputError("this program's attention on the device was compiled for heads of " +
                   list(compiled) + " channels, the model has " + std::to_string(model.head_dim) +
                   "; TERSE_EXAMPLE_HEAD_DIMS of its configuration says for which");
}

}  // namespace terse::examples
