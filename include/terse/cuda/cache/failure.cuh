/// Sequences that the device finds something wrong with, which the host cannot see.
#pragma once

#include <cstdint>

#include "terse/cache/memory_plan.hpp"
#include "terse/cache/ref.hpp"
#include "terse/config.hpp"
#include "terse/core/status.hpp"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {
namespace cuda {
namespace detail {

/// What a sequence was like in the step that failed. From then on the device leaves its bytes
/// alone.
struct SequenceFailure {
  std::int64_t length_tokens;  ///< committed before that step
  std::int64_t exact_begin[max_policy_classes];
  std::int32_t slot;         ///< counted over all classes
  std::int32_t truncations;  ///< of the sequence, until then
};

/// Where failures are noted. Pointers are the device's.
struct FailureTables {
  SequenceRecord* sequences;        // [sequence]
  const std::int32_t* truncations;  // [sequence]
  SequenceFailure* failures;        // [sequence]
  const GridRecord* class_grids[max_policy_classes];
  const std::uint8_t* class_appended[max_policy_classes];  // [sequence, slot]
  int class_slots[max_policy_classes];
  int num_classes;
};

/// Marks a sequence as failed; of several threads the first one decides. `length`: committed
/// tokens.
static __device__ __noinline__ void fail_sequence(const FailureTables& tables, int sequence,
                                                  StatusCode code, int slot, std::int64_t length) {
  const int none = 0;
  if (atomicCAS(&tables.sequences[sequence].failed, none, static_cast<int>(code)) != none) return;
  SequenceFailure& failure = tables.failures[sequence];
  failure.length_tokens = length;
  for (int k = 0; k < tables.num_classes; ++k) {
    failure.exact_begin[k] = tables.class_grids[k][sequence].exact_begin;
  }
  failure.slot = slot;
  failure.truncations = tables.truncations[sequence];
}

}  // namespace detail
}  // namespace cuda
}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
