/// Policies that programs evaluate on the host only.
#include "device/session_list.hpp"
#include "evaluation/device.hpp"
#include "report/input_error.hpp"

namespace terse::examples {

template <Layout L, class Policy>
std::unique_ptr<Session> make_device_session(const SessionConfig&, const SessionPolicy<Policy>&) {
  throw InputError("this policy is evaluated with --device cpu only: its bytes are the same there");
}

TERSE_EXAMPLE_HOST_SESSIONS

}  // namespace terse::examples
