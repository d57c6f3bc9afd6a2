/// What a KVCache holds: its plan, its stores, the handles it has given out and the step it is in.
#pragma once

#include <cstddef>
#include <cstdint>
#include <tuple>
#include <utility>

#include "terse/cache/class_store.hpp"
#include "terse/cache/memory_plan.hpp"
#include "terse/cache/schedule.hpp"
#include "terse/config.hpp"
#include "terse/core/host_array.hpp"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {
namespace detail {

/// First bytes of a state buffer: attach recognises its own caches by them.
inline constexpr std::uint64_t state_magic = 0x3130544154535254ull;  // "TRSTAT01"
struct StateRecord {
  std::uint64_t magic = 0;
  std::uint64_t identity = 0;
};

[[nodiscard]] inline Status inside_step() noexcept {
  return error(StatusCode::wrong_phase, "terse::KVCache: not allowed inside a step");
}
[[nodiscard]] inline Status outside_step() noexcept {
  return error(StatusCode::wrong_phase, "terse::KVCache: no step has begun");
}

template <Layout L, class ClassesOfPolicies, class MemoryPart = HostMemory>
struct CacheState {
  using Memory = MemoryPart;
  using layout = L;
  using Classes = ClassesOfPolicies;
  static constexpr int num_classes = Classes::size;

  template <std::size_t... I>
  static std::tuple<ClassStore<L, typename Classes::template At<I>, Memory>...> stores_type(
      std::index_sequence<I...>);
  using Stores = decltype(stores_type(std::make_index_sequence<num_classes>{}));

  [[no_unique_address]] Memory memory{};
  CacheConfig config{};
  MemoryPlan plan{};
  HostArray<LayerPlace> places;            // [layer]
  HostArray<StepPart> parts;               // of the step in progress, [part]
  HostArray<bool> slot_written;            // in the step in progress, [slot of all classes]
  HostArray<ProjectionFactors> factors;    // [slot of all classes]
  HostArray<SlotCalibration> calibration;  // [slot of all classes]
  int slot_base[max_policy_classes]{};     // first slot of a class in the arrays over all classes
  int total_slots = 0;
  int num_parts = 0;
  bool in_step = false;
  StateRecord* state_record = nullptr;
  SequenceRecord* sequences = nullptr;  // [sequence]
  Stores stores{};

  template <class F>
  void for_each_store(F&& f) noexcept {
    std::apply([&](auto&... store) { (f(store), ...); }, stores);
  }
  template <class F>
  void for_each_store(F&& f) const noexcept {
    std::apply([&](const auto&... store) { (f(store), ...); }, stores);
  }
  template <class F>
  void with_store(int policy_class, F&& f) noexcept {
    int i = 0;
    for_each_store([&](auto& store) {
      if (i++ == policy_class) f(store);
    });
  }
  template <class F>
  void with_store(int policy_class, F&& f) const noexcept {
    int i = 0;
    for_each_store([&](const auto& store) {
      if (i++ == policy_class) f(store);
    });
  }

  [[nodiscard]] Status check(SequenceId sequence) const noexcept {
    if (sequence.index < 0 || sequence.index >= config.max_sequences ||
        sequences[sequence.index].alive == 0 ||
        sequences[sequence.index].generation != sequence.generation) {
      return error(StatusCode::stale_sequence,
                   "terse::KVCache: the handle names no living sequence", sequence.index);
    }
    return {};
  }
  [[nodiscard]] Status check_idle(SequenceId sequence) const noexcept {
    if (in_step) return inside_step();
    return check(sequence);
  }
  [[nodiscard]] Status check_layer(int layer) const noexcept {
    if (layer < 0 || layer >= config.num_layers) {
      return error(StatusCode::invalid_argument, "terse::KVCache: layer out of range", layer);
    }
    return {};
  }
};

}  // namespace detail
}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
