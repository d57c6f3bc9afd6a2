/// What programs use of a CUDA device. Without CUDA or cuBLAS in the build every function throws
/// InputError.
#pragma once

#include <memory>
#include <string>

#include "evaluation/cache_session.hpp"
#include "model/llama.hpp"
#include "model/matmul.hpp"

namespace terse::examples {

/// Name of the device in use. Throws InputError where there is none.
[[nodiscard]] std::string device_name();

/// Throws InputError if attention on the device does not serve the model.
void check_on_device(const LlamaConfig& model);

/// Products by cuBLAS, in fp32 without tensor cores' shorter formats. Weights are kept on the
/// device; inputs and outputs are the host's. Any number of threads may call it, in turn.
[[nodiscard]] std::unique_ptr<MatrixProducts> make_device_products();

/// A session whose cache lies on the device, for the policies of policy_rows that
/// device/session_list.hpp names.
template <Layout L, class Policy>
[[nodiscard]] std::unique_ptr<Session> make_device_session(const SessionConfig& config,
                                                           const SessionPolicy<Policy>& row);

}  // namespace terse::examples
