/// Head dimensions for which programs' attention on the device is compiled, of every policy:
/// TERSE_EXAMPLE_HEAD_DIMS of the configuration.
#pragma once

#include "terse/terse.cuh"

#include "configured_head_dims.hpp"

namespace terse::examples {

using DeviceHeadDims = cuda::HeadDims<TERSE_EXAMPLE_HEAD_DIMS>;

}  // namespace terse::examples
