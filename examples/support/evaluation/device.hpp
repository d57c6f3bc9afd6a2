/// What programs use of a CUDA device. Without CUDA or cuBLAS in the build every function throws
/// InputError.
#pragma once

#include <memory>
#include <string>

#include "evaluation/cache_session.hpp"
#include "model/llama.hpp"
#include "model/matmul.hpp"
#include "report/input_error.hpp"

namespace terse::examples {

/// Name of the device in use. Throws InputError where there is none.
[[nodiscard]] std::string device_name();

/// Channels of a head for which attention on the device is compiled.
inline constexpr int device_head_dims[] = {64, 128};

/// Throws InputError if attention on the device does not serve the model.
inline void check_on_device(const LlamaConfig& model) {
  for (const int dim : device_head_dims) {
    if (model.head_dim == dim) return;
  }
  throw InputError("--device cuda serves heads of 64 and 128 channels, the model has " +
                   std::to_string(model.head_dim));
}

/// Products by cuBLAS, in fp32 without tensor cores' shorter formats. Weights are kept on the
/// device; inputs and outputs are the host's. Any number of threads may call it, in turn.
[[nodiscard]] std::unique_ptr<MatrixProducts> make_device_products();

/// A session whose cache lies on the device, for the policies of policy_rows that
/// device/session_list.hpp names.
template <Layout L, class Policy>
[[nodiscard]] std::unique_ptr<Session> make_device_session(const SessionConfig& config,
                                                           const SessionPolicy<Policy>& row);

}  // namespace terse::examples
