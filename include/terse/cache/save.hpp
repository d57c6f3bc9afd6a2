/// Saving of one sequence as self-describing bytes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "terse/cache/cache_state.hpp"
#include "terse/cache/fingerprint.hpp"
#include "terse/cache/saved_format.hpp"
#include "terse/config.hpp"
#include "terse/core/span.hpp"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {
namespace detail {

/// Counts the bytes of a payload.
struct PayloadCounter {
  int sequence;
  std::uint64_t total = 0;

  template <class T>
  void table(const T*, std::size_t count) noexcept {
    total += count * sizeof(T);
  }
  template <class T>
  void states(const T*, std::size_t count) noexcept {
    total += count * sizeof(T);
  }
  template <class Ref>
  void entry(const Ref& r, int row, int entry) noexcept {
    total += 1;
    if (entry_block(r, sequence, row, entry) != nullptr) total += r.shape.page_bytes;
  }
  void bytes(const std::byte*, std::size_t count) noexcept { total += count; }
};

template <class Store>
[[nodiscard]] std::uint64_t payload_bytes(Store& store, int sequence) noexcept {
  PayloadCounter counter{sequence};
  walk_sequence(store, sequence, counter);
  return counter.total;
}

/// Writes a payload at `out`. `Source` reads what need not lie in the memory of this processor:
///
///   void read_states(std::byte* to, TokenState* states, std::size_t count);
///   void read_bytes(std::byte* to, const std::byte* from, std::size_t bytes);  // of pages, tails
template <class Source>
struct PayloadWriter {
  int sequence;
  Source& source;
  std::byte* out;

  template <class T>
  void table(const T* from, std::size_t count) noexcept {
    std::memcpy(out, from, count * sizeof(T));
    out += count * sizeof(T);
  }
  template <class T>
  void states(T* from, std::size_t count) noexcept {
    source.read_states(out, from, count);
    out += count * sizeof(T);
  }
  template <class Ref>
  void entry(const Ref& r, int row, int entry) noexcept {
    const std::byte* block = entry_block(r, sequence, row, entry);
    *out++ = std::byte{block != nullptr};
    if (block != nullptr) bytes(block, r.shape.page_bytes);
  }
  void bytes(const std::byte* from, std::size_t count) noexcept {
    source.read_bytes(out, from, count);
    out += count;
  }
};

/// Everything lies here.
struct HostSource {
  template <class T>
  static void read_states(std::byte* to, const T* states, std::size_t count) noexcept {
    std::memcpy(to, states, count * sizeof(T));
  }
  static void read_bytes(std::byte* to, const std::byte* from, std::size_t bytes) noexcept {
    std::memcpy(to, from, bytes);
  }
};

template <class State>
[[nodiscard]] Expected<std::size_t> saved_bytes(const State& state, SequenceId sequence) noexcept {
  if (Status s = state.check_idle(sequence); !s.ok()) return s;
  std::size_t bytes = sizeof(SaveHeader);
  state.for_each_store([&](const auto& store) {
    bytes += sizeof(ClassHeader) + payload_bytes(store, sequence.index);
  });
  return bytes;
}

/// Whether the sequence can be saved to `out`.
template <class State>
[[nodiscard]] Status check_save(const State& state, SequenceId sequence,
                                Span<std::byte> out) noexcept {
  const Expected<std::size_t> need = saved_bytes(state, sequence);
  if (!need.ok()) return need.status();
  if (out.data() == nullptr || out.size() < *need) {
    return error(StatusCode::buffer_too_small,
                 "terse::KVCache::save: the buffer is smaller than saved_bytes; detail: bytes",
                 static_cast<std::int64_t>(*need));
  }
  return {};
}

/// Writes the payloads, and leaves room for their headers. `source`: as in PayloadWriter.
template <class State, class Source>
void write_payloads(State& state, SequenceId sequence, std::byte* out, Source& source) noexcept {
  out += sizeof(SaveHeader);
  state.for_each_store([&](auto& store) {
    PayloadWriter<Source> writer{sequence.index, source, out + sizeof(ClassHeader)};
    walk_sequence(store, sequence.index, writer);
    out = writer.out;
  });
}

/// Writes the headers, when the payloads are there.
template <class State>
void write_headers(State& state, SequenceId sequence, std::uint64_t model_fingerprint,
                   std::byte* out) noexcept {
  std::byte* at = out + sizeof(SaveHeader);
  state.for_each_store([&](auto& store) {
    ClassHeader own;
    own.identity = class_identity(store);
    own.payload_bytes = payload_bytes(store, sequence.index);
    own.checksum = fingerprint(at + sizeof own, static_cast<std::size_t>(own.payload_bytes));
    std::memcpy(at, &own, sizeof own);
    at += sizeof own + own.payload_bytes;
  });
  SaveHeader header;
  header.num_classes = static_cast<std::uint32_t>(State::num_classes);
  header.total_bytes = static_cast<std::uint64_t>(at - out);
  header.model_fingerprint = model_fingerprint;
  header.length_tokens = state.sequences[sequence.index].length_tokens;
  header.checksum = fingerprint(&header, sizeof header);
  std::memcpy(out, &header, sizeof header);
}

template <class State>
Status save_sequence(State& state, SequenceId sequence, std::uint64_t model_fingerprint,
                     Span<std::byte> out) noexcept {
  static_assert(std::is_same_v<typename State::Memory, HostMemory>);
  if (Status s = check_save(state, sequence, out); !s.ok()) return s;
  HostSource source;
  write_payloads(state, sequence, out.data(), source);
  write_headers(state, sequence, model_fingerprint, out.data());
  return {};
}

}  // namespace detail
}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
