/// Whether a replayed graph has appended all that the host was told it would.
#pragma once

#include <cuda_runtime.h>

#include "terse/cache/config.hpp"
#include "terse/config.hpp"
#include "terse/cuda/cache/failure.cuh"
#include "terse/cuda/cache/step_record.cuh"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {
namespace cuda {
namespace detail {

/// Fails the sequences of the step in progress of which a slot lacks its tokens. A thread a part.
template <int Threads>
__global__ void __launch_bounds__(Threads) verify_step(StepView step, FailureTables tables) {
  const int part = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (part >= *step.num_parts) return;
  const int sequence = step.parts[part].sequence.index;
  int slot = 0;
  for (int k = 0; k < tables.num_classes; ++k) {
    for (int s = 0; s < tables.class_slots[k]; ++s, ++slot) {
      if (tables.class_appended[k][sequence * tables.class_slots[k] + s] != 0) continue;
      return fail_sequence(tables, sequence, StatusCode::wrong_phase, slot,
                           tables.sequences[sequence].length_tokens);
    }
  }
}

}  // namespace detail
}  // namespace cuda
}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
