/// Feeding evictors what attention saw.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "terse/cache/cache_state.hpp"
#include "terse/config.hpp"
#include "terse/core/span.hpp"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {
namespace detail {

/// Floats of column sums of one part: `[unit, entry, 64]`.
[[nodiscard]] inline std::size_t column_sum_floats(const ClassShape& shape) noexcept {
  return static_cast<std::size_t>(shape.unit.units) * static_cast<std::size_t>(shape.entries) *
         block_tokens;
}

/// Calls `visit(state, sum)` for the live tokens of the parts: `sums [part, unit, entry, 64]`.
template <class Store, class Visit>
void visit_observed(Store& store, int slot, Span<const StepPart> parts, const float* sums,
                    Visit&& visit) noexcept {
  const auto r = store.ref(slot);
  const auto unit_floats = static_cast<std::size_t>(store.shape.entries) * block_tokens;
  for (std::size_t i = 0; i < parts.size(); ++i) {
    const int sequence = parts[i].sequence.index;
    for (int u = 0; u < store.shape.unit.units; ++u) {
      const float* own =
          sums + i * column_sum_floats(store.shape) + static_cast<std::size_t>(u) * unit_floats;
      const std::size_t at = r.unit_entry(sequence, u, 0);
      const auto tokens =
          static_cast<std::size_t>(r.entry_count(sequence, r.row_of_unit(u))) * block_tokens;
      for (std::size_t t = 0; t < tokens; ++t) {
        if ((r.live[at + t / block_tokens] >> (t % block_tokens) & 1u) != 0) {
          visit(r.token_states[at * block_tokens + t], own[t]);
        }
      }
    }
  }
}

template <class Store>
Status observe_slot(Store& store, int slot, Span<const StepPart> parts,
                    const float* sums) noexcept {
  using P = typename Store::Ref::policy;
  if constexpr (P::signal != Signal::column_sum) {
    return error(StatusCode::unsupported,
                 "terse::KVCache::observe: the policy's evictor takes no column sums");
  } else {
    using TokenState = typename Store::TokenState;
    bool finite = true;
    visit_observed(store, slot, parts, sums,
                   [&](const TokenState&, float sum) { finite = finite && is_finite(sum); });
    if (!finite) {
      return error(StatusCode::not_finite,
                   "terse::KVCache::observe: a live token's column sum is NaN or infinite");
    }
    visit_observed(store, slot, parts, sums,
                   [](TokenState& state, float sum) { P::evictor::observe(state, sum); });
    return {};
  }
}

[[nodiscard]] inline Status observed_inside_step() noexcept {
  return error(StatusCode::wrong_phase,
               "terse::KVCache::observe: the step in progress may still be abandoned; keep the "
               "column sums and pass them after commit_step");
}

template <class State>
Status observe_layer(State& state, int layer, Span<const StepPart> parts,
                     Span<const float> column_sums) noexcept {
  static_assert(std::is_same_v<typename State::Memory, HostMemory>);
  if (state.in_step) return observed_inside_step();
  if (Status s = state.check_layer(layer); !s.ok()) return s;
  for (const StepPart& part : parts) {
    if (Status s = state.check(part.sequence); !s.ok()) return s;
  }
  const LayerPlace place = state.places[layer];
  const ClassShape& shape = state.plan.classes[place.policy_class].shape;
  if (column_sums.size() < parts.size() * column_sum_floats(shape)) {
    return error(StatusCode::buffer_too_small,
                 "terse::KVCache::observe: fewer column sums than parts * column_sum_floats");
  }
  Status status{};
  state.with_store(place.policy_class, [&](auto& store) {
    status = observe_slot(store, place.slot, parts, column_sums.data());
  });
  return status;
}

}  // namespace detail
}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
