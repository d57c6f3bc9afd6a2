/// Views of a cache whose bytes lie on the device.
#pragma once

#include <cstddef>
#include <cuda_runtime_api.h>
#include <type_traits>

#include "terse/cache/config.hpp"
#include "terse/cache/ref.hpp"
#include "terse/config.hpp"
#include "terse/core/status.hpp"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {
namespace cuda {

[[nodiscard]] inline Status to_status(cudaError_t code, const char* text) noexcept {
  if (code == cudaSuccess) return {};
  return error(StatusCode::device_error, text, static_cast<std::int64_t>(code));
}

/// The same view over a byte copy of the buffers: every pointer of `ref`, which points into `from`,
/// moved to the same place of `to`, whose buffers are 128-byte aligned too. Nothing is copied;
/// factors and calibrations, which lie elsewhere, stay.
template <class Ref>
[[nodiscard]] Ref rebase(Ref ref, const Buffers& from, const Buffers& to) noexcept {
  const auto move = [&](auto*& pointer, const Span<std::byte>& old, const Span<std::byte>& now) {
    if (pointer == nullptr) return;
    auto* bytes = reinterpret_cast<std::byte*>(pointer);
    pointer = reinterpret_cast<std::remove_reference_t<decltype(pointer)>>(now.data() +
                                                                           (bytes - old.data()));
  };
  move(ref.pages, from.pages, to.pages);
  move(ref.tails, from.tails, to.tails);
  move(ref.sequences, from.state, to.state);
  move(ref.grids, from.state, to.state);
  move(ref.appended, from.state, to.state);
  move(ref.entry_counts, from.state, to.state);
  move(ref.page_table, from.state, to.state);
  move(ref.live, from.state, to.state);
  move(ref.first_positions, from.state, to.state);
  move(ref.position_deltas, from.state, to.state);
  move(ref.token_states, from.state, to.state);
  return ref;
}

/// Copies the three buffers of a cache to the device, or back, in the order of `stream`.
[[nodiscard]] inline Status copy_buffers(const Buffers& from, const Buffers& to,
                                         cudaStream_t stream) noexcept {
  const auto copy = [&](const Span<std::byte>& a, const Span<std::byte>& b) {
    if (a.size() == 0) return Status{};
    if (b.size() < a.size()) {
      return error(StatusCode::buffer_too_small,
                   "terse::cuda::copy_buffers: a buffer is smaller than the one copied; detail: "
                   "bytes needed",
                   static_cast<std::int64_t>(a.size()));
    }
    return to_status(cudaMemcpyAsync(b.data(), a.data(), a.size(), cudaMemcpyDefault, stream),
                     "terse::cuda::copy_buffers: cudaMemcpyAsync failed");
  };
  if (Status s = copy(from.pages, to.pages); !s.ok()) return s;
  if (Status s = copy(from.tails, to.tails); !s.ok()) return s;
  return copy(from.state, to.state);
}

}  // namespace cuda
}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
