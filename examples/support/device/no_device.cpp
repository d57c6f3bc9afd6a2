/// Programs built without CUDA or cuBLAS.
#include "device/session_list.hpp"
#include "evaluation/device.hpp"
#include "report/input_error.hpp"

namespace terse::examples {

namespace {

[[noreturn]] void refuse() {
  throw InputError(
      "this program was built without CUDA and cuBLAS; configure with TERSE_ENABLE_CUDA=ON");
}

}  // namespace

std::string device_name() { refuse(); }
void check_on_device(const LlamaConfig&) { refuse(); }
std::unique_ptr<MatrixProducts> make_device_products() { refuse(); }

template <Layout L, class Policy>
std::unique_ptr<Session> make_device_session(const SessionConfig&, const SessionPolicy<Policy>&) {
  refuse();
}

TERSE_EXAMPLE_PLAIN_SESSIONS
TERSE_EXAMPLE_KIVI_SESSIONS
TERSE_EXAMPLE_SHAPED_SESSIONS
TERSE_EXAMPLE_WINDOW_SESSIONS
TERSE_EXAMPLE_HEAVY_HITTER_SESSIONS
TERSE_EXAMPLE_LATENT_SESSIONS

}  // namespace terse::examples
