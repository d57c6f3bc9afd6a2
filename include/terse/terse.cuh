/// Everything of terse.hpp, and the device's half.
#pragma once

#include "terse/cuda/attend.cuh"
#include "terse/cuda/device_ref.cuh"
#include "terse/cuda/export_plain.cuh"
#include "terse/cuda/import_plain.cuh"
#include "terse/cuda/kv_cache.cuh"
#include "terse/cuda/tuning.cuh"
#include "terse/terse.hpp"
