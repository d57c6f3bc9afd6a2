/// Codes of blocks that are complete but not due yet: they wait in the tail, and the step that
/// seals the block copies them.
#pragma once

#include <cstdint>
#include <cstring>

#include "terse/cache/append.hpp"
#include "terse/cache/cache_state.hpp"
#include "terse/cache/grid.hpp"
#include "terse/config.hpp"
#include "terse/core/status.hpp"
#include "terse/policy/record.hpp"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {
namespace detail {

/// Encodes a stream of the tail's block at `first`, unless that has been done.
template <class CodecPart, class Store>
void encode_stream_ahead(Store& store, const typename Store::Ref& r, Side side, int sequence,
                         int unit, int stream, std::int64_t first) noexcept {
  const ClassShape& shape = store.shape;
  std::byte* tail = r.tail_block(sequence, unit, first);
  if (ahead_mark(shape, tail, side, stream) == ClassShape::all_ahead) return;
  std::byte* out = tail + shape.ahead_offset(side, stream);
  std::memset(out, 0, shape.record(side).bytes);  // as pages are, by the codecs' contract
  encode_tail<CodecPart>(store, r, side, sequence, unit, stream, first, out);
  set_ahead_mark(shape, tail, side, stream, ClassShape::all_ahead);
}

/// Encodes the complete blocks of one sequence that the step in progress does not seal.
template <class Store>
void encode_sequence_ahead(Store& store, const typename Store::Ref& r, int sequence) noexcept {
  using Policy = typename Store::Ref::policy;
  const ClassShape& shape = store.shape;
  const GridRecord& grid = store.base.grids[sequence];
  const std::int64_t end = r.visible_tokens(sequence);
  for (std::int64_t first = sealed_end_of(shape, grid, end); first + block_tokens <= end;
       first += block_tokens) {
    for (int u = 0; u < shape.unit.units; ++u) {
      for (int s = 0; s < shape.unit.key_streams; ++s) {
        encode_stream_ahead<typename Policy::key_codec>(store, r, Side::key, sequence, u, s, first);
      }
      for (int s = 0; s < shape.unit.value_streams; ++s) {
        encode_stream_ahead<typename Policy::value_codec>(store, r, Side::value, sequence, u, s,
                                                          first);
      }
    }
  }
}

/// Whether a layer's slot can encode ahead now.
template <class State>
[[nodiscard]] Status check_encode_ahead(const State& state, int layer) noexcept {
  if (!state.in_step) return outside_step();
  if (Status s = state.check_layer(layer); !s.ok()) return s;
  const LayerPlace at = state.places[layer];
  if (!state.slot_written[state.slot_base[at.policy_class] + at.slot]) {
    return error(
        StatusCode::wrong_phase,
        "terse::KVCache::encode_ahead: this step's tokens are not in the layer's slot yet; "
        "call it after append; detail: the slot",
        at.slot);
  }
  bool has_room = false;
  state.with_store(at.policy_class,
                   [&](const auto& store) { has_room = store.shape.encodes_ahead; });
  if (!has_room) {
    return error(StatusCode::unsupported,
                 "terse::KVCache::encode_ahead: the layer's policy class has no room for it; set "
                 "PolicyConfig::encodes_ahead; detail: the class",
                 at.policy_class);
  }
  return {};
}

template <class State>
Status encode_layer_ahead(State& state, int layer) noexcept {
  if (Status s = check_encode_ahead(state, layer); !s.ok()) return s;
  const LayerPlace at = state.places[layer];
  state.with_store(at.policy_class, [&](auto& store) {
    const auto r = store.ref(at.slot);
    for (int i = 0; i < state.num_parts; ++i) {
      encode_sequence_ahead(store, r, state.parts[i].sequence.index);
    }
  });
  return {};
}

}  // namespace detail
}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
