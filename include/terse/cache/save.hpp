/// Saving of one sequence as self-describing bytes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "terse/cache/cache_state.hpp"
#include "terse/cache/fingerprint.hpp"
#include "terse/cache/saved_format.hpp"
#include "terse/config.hpp"
#include "terse/core/span.hpp"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {
namespace detail {

template <class Store>
[[nodiscard]] std::uint64_t payload_bytes(Store& store, int sequence) {
  std::uint64_t bytes = 0;
  walk_sequence(
      store, sequence, [&](const void*, std::size_t n) { bytes += n; },
      [&](const auto& r, int row, int entry) {
        bytes += 1;
        if (entry_block(r, sequence, row, entry) != nullptr) bytes += store.shape.page_bytes;
      });
  return bytes;
}

/// Writes the payload at `out`, which has room for payload_bytes.
template <class Store>
void write_payload(Store& store, int sequence, std::byte* out) {
  const auto put = [&](const void* from, std::size_t n) {
    std::memcpy(out, from, n);
    out += n;
  };
  walk_sequence(store, sequence, put, [&](const auto& r, int row, int entry) {
    const std::byte* block = entry_block(r, sequence, row, entry);
    const std::uint8_t has_block = block != nullptr;
    put(&has_block, 1);
    if (block != nullptr) put(block, store.shape.page_bytes);
  });
}

template <class State>
[[nodiscard]] Expected<std::size_t> saved_bytes(const State& state, SequenceId sequence) noexcept {
  if (Status s = state.check_idle(sequence); !s.ok()) return s;
  std::size_t bytes = sizeof(SaveHeader);
  state.for_each_store([&](const auto& store) {
    bytes += sizeof(ClassHeader) + payload_bytes(store, sequence.index);
  });
  return bytes;
}

template <class State>
Status save_sequence(State& state, SequenceId sequence, std::uint64_t model_fingerprint,
                     Span<std::byte> out) noexcept {
  const Expected<std::size_t> need = saved_bytes(state, sequence);
  if (!need.ok()) return need.status();
  if (out.data() == nullptr || out.size() < *need) {
    return error(StatusCode::buffer_too_small,
                 "terse::KVCache::save: the buffer is smaller than saved_bytes; detail: bytes",
                 static_cast<std::int64_t>(*need));
  }
  SaveHeader header;
  header.num_classes = static_cast<std::uint32_t>(State::num_classes);
  header.total_bytes = *need;
  header.model_fingerprint = model_fingerprint;
  header.length_tokens = state.sequences[sequence.index].length_tokens;
  header.checksum = fingerprint(&header, sizeof header);
  std::memcpy(out.data(), &header, sizeof header);
  std::byte* at = out.data() + sizeof header;
  state.for_each_store([&](auto& store) {
    ClassHeader own;
    own.identity = class_identity(store);
    own.payload_bytes = payload_bytes(store, sequence.index);
    write_payload(store, sequence.index, at + sizeof own);
    own.checksum = fingerprint(at + sizeof own, static_cast<std::size_t>(own.payload_bytes));
    std::memcpy(at, &own, sizeof own);
    at += sizeof own + own.payload_bytes;
  });
  return {};
}

}  // namespace detail
}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
