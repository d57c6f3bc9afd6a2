/// What programs use of a CUDA device. Without CUDA in the build every function throws InputError.
#pragma once

#include <memory>
#include <string>

#include "evaluation/cache_session.hpp"
#include "model/matmul.hpp"

namespace terse::examples {

/// Name of the device in use. Throws InputError where there is none.
[[nodiscard]] std::string device_name();

/// Products by cuBLAS, in fp32 without tensor cores' shorter formats. Weights are kept on the
/// device; inputs and outputs are the host's. Any number of threads may call it, in turn.
[[nodiscard]] std::unique_ptr<MatrixProducts> make_device_products();

/// Whether attention on the device serves a policy.
template <class Policy>
inline constexpr bool runs_on_device = !PolicyOf<Policy>::projects;

/// A session whose cache lies on the device, for the policies of policy_rows (device/sessions_*).
template <Layout L, class Policy>
[[nodiscard]] std::unique_ptr<Session> make_device_session(const SessionConfig& config,
                                                           const SessionPolicy<Policy>& row);

}  // namespace terse::examples
