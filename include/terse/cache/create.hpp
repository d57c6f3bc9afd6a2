/// From a configuration to buffer sizes, and from buffers to a cache.
#pragma once

#include <cstddef>
#include <cstdint>
#include <tuple>
#include <utility>

#include "terse/cache/cache_state.hpp"
#include "terse/cache/fingerprint.hpp"
#include "terse/config.hpp"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {
namespace detail {

/// Slots of class `c` of `num_classes`: the highest slot that a layer names, plus one.
[[nodiscard]] inline Status count_slots(const CacheConfig& config, int num_classes, int c,
                                        int* slots) noexcept {
  *slots = 0;
  if (config.num_layers <= 0) return {};  // make_class_shape says so
  if (config.layers.empty()) {
    *slots = c == 0 ? config.num_layers : 0;
  } else {
    if (config.layers.size() != static_cast<std::size_t>(config.num_layers)) {
      return error(StatusCode::invalid_argument,
                   "terse::CacheConfig: layers must have one place per layer",
                   static_cast<std::int64_t>(config.layers.size()));
    }
    for (const LayerPlace& place : config.layers) {
      if (place.policy_class < 0 || place.policy_class >= num_classes || place.slot < 0 ||
          place.slot >= config.num_layers) {
        return error(StatusCode::invalid_argument,
                     "terse::CacheConfig: a layer names a slot or policy class out of range");
      }
      if (place.policy_class == c && place.slot >= *slots) *slots = place.slot + 1;
    }
    for (int s = 0; s < *slots; ++s) {
      bool used = false;
      for (const LayerPlace& place : config.layers) {
        used = used || (place.policy_class == c && place.slot == s);
      }
      if (!used) {
        return error(StatusCode::invalid_argument,
                     "terse::CacheConfig: no layer uses this slot; slots of a class are "
                     "numbered from 0 without gaps",
                     s);
      }
    }
  }
  if (*slots == 0) {
    return error(StatusCode::invalid_argument, "terse::CacheConfig: a policy class serves no layer",
                 c);
  }
  return {};
}

template <class State, std::size_t... I>
[[nodiscard]] Status plan_classes(const CacheConfig& config,
                                  const typename State::Classes::Configs& policies, MemoryPlan* out,
                                  std::index_sequence<I...>) {
  out->num_classes = State::num_classes;
  Carver carver;
  carver.take<StateRecord>(1);
  carver.take<SequenceRecord>(
      static_cast<std::size_t>(config.max_sequences > 0 ? config.max_sequences : 0));
  Status status{};
  const auto plan_class = [&]<std::size_t K>() {
    if (!status.ok()) return;
    using P = typename State::Classes::template At<K>;
    int slots = 0;
    status = count_slots(config, State::num_classes, static_cast<int>(K), &slots);
    if (!status.ok()) return;
    ClassStore<typename State::layout, P> store;
    status = make_class_shape<typename State::layout, P>(config, std::get<K>(policies), slots,
                                                         &store.shape);
    if (!status.ok()) return;
    const std::size_t before = carver.used_bytes();
    store.carve_state(carver);
    ClassPlan& c = out->classes[K];
    c.shape = store.shape;
    c.bits_per_element = store.shape.bits_per_element();
    c.pages_bytes = store.pages_bytes();
    c.tails_bytes = store.tails_bytes();
    c.state_bytes = carver.used_bytes() - before;
    out->pages_bytes += c.pages_bytes;
    out->tails_bytes += c.tails_bytes;
  };
  (plan_class.template operator()<I>(), ...);
  out->state_bytes = carver.used_bytes();
  return status;
}

template <class State>
[[nodiscard]] Expected<MemoryPlan> plan_cache(const CacheConfig& config,
                                              const typename State::Classes::Configs& policies) {
  MemoryPlan result;
  Status status = plan_classes<State>(config, policies, &result,
                                      std::make_index_sequence<State::num_classes>{});
  if (!status.ok()) return status;
  return result;
}

[[nodiscard]] inline Status check_buffer(Span<std::byte> buffer, std::size_t need) noexcept {
  if (need > 0 && buffer.data() == nullptr) {
    return error(StatusCode::null_pointer, "terse::KVCache: a buffer is null");
  }
  if (reinterpret_cast<std::uintptr_t>(buffer.data()) % record_align_bytes != 0) {
    return error(StatusCode::misaligned, "terse::KVCache: buffers must be 128-byte aligned");
  }
  if (buffer.size() < need) {
    return error(StatusCode::buffer_too_small,
                 "terse::KVCache: a buffer is smaller than plan() says; detail: bytes needed",
                 static_cast<std::int64_t>(need));
  }
  return {};
}

template <class State, std::size_t... I>
void bind_stores(State& state, Carver& carver, const Buffers& buffers,
                 const typename State::Classes::Configs& policies,
                 std::index_sequence<I...>) noexcept {
  std::byte* pages = buffers.pages.data();
  std::byte* tails = buffers.tails.data();
  const auto bind_one = [&]<std::size_t K>() {
    auto& store = std::get<K>(state.stores);
    const auto& policy_config = std::get<K>(policies);
    store.shape = state.plan.classes[K].shape;
    store.carve_state(carver);
    store.base.shape = store.shape;
    store.base.rope = state.config.rope;
    store.base.eviction = policy_config.eviction;
    store.borrows_pages = policy_config.borrows_pages;
    store.base.pages = pages;
    store.base.tails = tails;
    store.base.sequences = state.sequences;
    pages += store.pages_bytes();
    tails += store.tails_bytes();
    store.factors = state.factors.data() + state.slot_base[K];
    for (std::size_t s = 0; s < policy_config.factors.size(); ++s) {
      state.factors[state.slot_base[K] + static_cast<std::int64_t>(s)] = policy_config.factors[s];
    }
    const CalibrationView& calibration = policy_config.calibration;
    if (!calibration.slots.empty()) {
      store.calibration = state.calibration.data() + state.slot_base[K];
      store.calibration_identity = calibration.identity;
    }
    for (std::size_t s = 0; s < calibration.slots.size(); ++s) {
      state.calibration[state.slot_base[K] + static_cast<std::int64_t>(s)] = calibration.slots[s];
    }
  };
  (bind_one.template operator()<I>(), ...);
}

/// Makes `state` one over buffers whose content is not yet believed.
template <class State>
[[nodiscard]] Status bind_buffers(State& state, const CacheConfig& config, const Buffers& buffers,
                                  const typename State::Classes::Configs& policies) {
  const Expected<MemoryPlan> planned = plan_cache<State>(config, policies);
  if (!planned.ok()) return planned.status();
  if (Status s = check_buffer(buffers.pages, planned->pages_bytes); !s.ok()) return s;
  if (Status s = check_buffer(buffers.tails, planned->tails_bytes); !s.ok()) return s;
  if (Status s = check_buffer(buffers.state, planned->state_bytes); !s.ok()) return s;
  state.config = config;
  state.plan = *planned;
  state.places = HostArray<LayerPlace>(config.num_layers);
  state.parts = HostArray<StepPart>(config.max_sequences);
  state.total_slots = 0;
  for (int c = 0; c < State::num_classes; ++c) {
    state.slot_base[c] = state.total_slots;
    state.total_slots += planned->classes[c].shape.slots;
  }
  state.slot_written = HostArray<bool>(state.total_slots);
  state.factors = HostArray<ProjectionFactors>(state.total_slots);
  state.calibration = HostArray<SlotCalibration>(state.total_slots);
  if (state.places.data() == nullptr || state.parts.data() == nullptr ||
      state.slot_written.data() == nullptr || state.factors.data() == nullptr ||
      state.calibration.data() == nullptr) {
    return error(StatusCode::unsupported, "terse::KVCache: out of host memory");
  }
  for (int i = 0; i < config.num_layers; ++i) {
    state.places[i] =
        config.layers.empty() ? LayerPlace{i, 0} : config.layers[static_cast<std::size_t>(i)];
  }
  state.config.layers = {state.places.data(), static_cast<std::size_t>(config.num_layers)};
  Carver carver(buffers.state.data());
  state.state_record = carver.take<StateRecord>(1);
  state.sequences = carver.take<SequenceRecord>(static_cast<std::size_t>(config.max_sequences));
  bind_stores(state, carver, buffers, policies, std::make_index_sequence<State::num_classes>{});
  return {};
}

/// Names layout, policies, shapes, stored formats, RoPE and the layers' places.
template <class State>
[[nodiscard]] std::uint64_t cache_identity(State& state) noexcept {
  std::uint64_t hash = state_magic;
  state.for_each_store([&](auto& store) {
    const std::uint64_t own[] = {class_identity(store),
                                 static_cast<std::uint64_t>(store.shape.sequences),
                                 static_cast<std::uint64_t>(store.shape.entries),
                                 static_cast<std::uint64_t>(store.shape.num_pages),
                                 static_cast<std::uint64_t>(store.borrows_pages)};
    hash = fingerprint(own, sizeof own, hash);
  });
  const RopeSpec& rope = state.config.rope;
  const double turns[] = {static_cast<double>(rope.pairing),
                          static_cast<double>(rope.rotary_dim),
                          rope.base,
                          rope.linear_scale,
                          rope.low_freq_factor,
                          rope.high_freq_factor,
                          rope.frequency_scale,
                          rope.original_context};
  hash = fingerprint(turns, sizeof turns, hash);
  return fingerprint(state.places.data(),
                     static_cast<std::size_t>(state.config.num_layers) * sizeof(LayerPlace), hash);
}

/// Forgets whatever the buffers hold.
template <class State>
void reset(State& state) noexcept {
  *state.state_record = {state_magic, cache_identity(state)};
  for (int i = 0; i < state.config.max_sequences; ++i) state.sequences[i] = SequenceRecord{};
  state.for_each_store([&](auto& store) {
    if constexpr (State::layout::paged) {
      store.pool.reset(store.shape.num_pages, !store.borrows_pages);
    }
    for (int i = 0; i < state.config.max_sequences; ++i) store.clear_sequence(i);
  });
}

/// Whether the buffers are those of such a cache, between steps.
template <class State>
[[nodiscard]] Status check_attached(State& state) noexcept {
  if (state.state_record->magic != state_magic ||
      state.state_record->identity != cache_identity(state)) {
    return error(StatusCode::mismatch,
                 "terse::KVCache::attach: the buffers are not those of a cache of this layout, "
                 "policy and configuration");
  }
  for (int i = 0; i < state.config.max_sequences; ++i) {
    if (state.sequences[i].pending_tokens != 0) {
      return error(StatusCode::wrong_phase,
                   "terse::KVCache::attach: the buffers were copied inside a step", i);
    }
  }
  return {};
}

}  // namespace detail
}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
