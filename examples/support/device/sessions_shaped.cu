#include "device/device_storage.cuh"
#include "device/session_list.hpp"

namespace terse::examples {

TERSE_EXAMPLE_SHAPED_SESSIONS

}  // namespace terse::examples
