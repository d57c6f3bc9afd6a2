/// Tables of the device that a cache of the host does not have: the step in progress, reports of
/// sequences, what eviction and compaction hand over.
#pragma once

#include <cstdint>

#include "terse/cache/config.hpp"
#include "terse/cache/memory_plan.hpp"
#include "terse/config.hpp"
#include "terse/cuda/cache/failure.cuh"
#include "terse/cuda/compact/compact_call.cuh"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {
namespace cuda {

/// The step in progress, in device memory: parts as begin_step took them, and the first row of
/// each. A captured graph that reads it serves later steps too.
struct StepView {
  const std::int32_t* num_parts = nullptr;
  const StepPart* parts = nullptr;           ///< `[part]`
  const std::int32_t* first_rows = nullptr;  ///< `[part]`
};

namespace detail {

/// Everything beside the tables that the device holds of sequences and steps.
struct StepTables {
  std::int32_t* num_parts = nullptr;
  StepPart* parts = nullptr;
  std::int32_t* first_rows = nullptr;
  std::int32_t* truncations = nullptr;  // [sequence]
  SequenceFailure* failures = nullptr;  // [sequence], the truth is the device's
  /// Where eviction leaves the masks that the host reads: [slot, sequence of the call, unit,
  /// entry], for classes that evict.
  std::uint64_t* masks[max_policy_classes]{};
  /// What compaction makes entries of: [slot, row, entry], of one sequence, packed.
  EntrySource* sources[max_policy_classes]{};

  template <class Carver>
  void carve(Carver& carver, const MemoryPlan& plan,
             const bool (&evicts)[max_policy_classes]) noexcept {
    const auto n = static_cast<std::size_t>(plan.classes[0].shape.sequences);
    num_parts = carver.template take<std::int32_t>(1);
    parts = carver.template take<StepPart>(n);
    first_rows = carver.template take<std::int32_t>(n);
    truncations = carver.template take<std::int32_t>(n);
    failures = carver.template take<SequenceFailure>(n);
    for (int k = 0; k < plan.num_classes; ++k) {
      const ClassShape& shape = plan.classes[k].shape;
      sources[k] = carver.template take<EntrySource>(static_cast<std::size_t>(shape.slots) *
                                                     static_cast<std::size_t>(shape.rows) *
                                                     static_cast<std::size_t>(shape.entries));
      if (!evicts[k]) continue;
      masks[k] = carver.template take<std::uint64_t>(static_cast<std::size_t>(shape.slots) * n *
                                                     static_cast<std::size_t>(shape.unit.units) *
                                                     static_cast<std::size_t>(shape.entries));
    }
  }
};

}  // namespace detail
}  // namespace cuda
}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
