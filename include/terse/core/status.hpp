/// Errors as values: nothing in terse throws, prints, traps or exits.
#pragma once

#include <cstdint>
#include <new>
#include <utility>

#include "terse/config.hpp"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {

enum class StatusCode : std::int32_t {
  ok = 0,
  invalid_argument,  ///< a shape, stride, count, scale or parameter is out of its range
  null_pointer,      ///< a required pointer is null
  misaligned,        ///< a buffer does not have the alignment that the plan states
  buffer_too_small,  ///< a buffer or workspace is smaller than its size query says
  not_finite,        ///< keys, values, latents, gate logits or column sums contain NaN or infinity
  stale_sequence,    ///< the handle does not name a living sequence
  too_many_sequences,  ///< max_sequences sequences are alive
  too_many_tokens,     ///< a sequence would exceed max_tokens, or a step max_step_tokens
  no_free_pages,       ///< the page pool cannot cover the request
  wrong_phase,         ///< the call is not allowed inside, or outside, a step
  already_appended,    ///< this layer's slot has its keys and values of this step
  would_be_lossy,      ///< the operation would encode tokens again; ask for it explicitly
  unsupported,         ///< the configuration is valid but no code path serves it
  corrupt_data,        ///< saved bytes do not match their checksum or their own lengths; on the
                       ///< device also: tables name no page for a block
  mismatch,            ///< saved bytes belong to another policy, layout, shape or model
  device_error,        ///< the CUDA runtime refused a call; detail: its cudaError_t
};

/// Result of a call. `text` is static and says what is wrong; `detail` holds the offending number
/// (an index, a size in bytes, a count) where one helps.
struct [[nodiscard]] Status {
  StatusCode code = StatusCode::ok;
  const char* text = "";
  std::int64_t detail = 0;

  [[nodiscard]] constexpr bool ok() const noexcept { return code == StatusCode::ok; }
};

[[nodiscard]] constexpr Status error(StatusCode code, const char* text,
                                     std::int64_t detail = 0) noexcept {
  return Status{code, text, detail};
}

/// A value or the Status that says why there is none. Usable with -fno-exceptions.
template <class T>
class [[nodiscard]] Expected {
 public:
  Expected(Status status) noexcept : status_(status) {}  // NOLINT: implicit by design
  Expected(T value) noexcept : has_value_(true) {        // NOLINT: implicit by design
    ::new (static_cast<void*>(&storage_)) T(std::move(value));
  }
  Expected(Expected&& other) noexcept : status_(other.status_), has_value_(other.has_value_) {
    if (has_value_) ::new (static_cast<void*>(&storage_)) T(std::move(*other));
  }
  Expected(const Expected&) = delete;
  Expected& operator=(const Expected&) = delete;
  Expected& operator=(Expected&&) = delete;
  ~Expected() {
    if (has_value_) (**this).~T();
  }

  [[nodiscard]] bool ok() const noexcept { return has_value_; }
  explicit operator bool() const noexcept { return has_value_; }
  [[nodiscard]] Status status() const noexcept { return has_value_ ? Status{} : status_; }
  /// Precondition: ok().
  T& operator*() noexcept { return *std::launder(reinterpret_cast<T*>(&storage_)); }
  const T& operator*() const noexcept {
    return *std::launder(reinterpret_cast<const T*>(&storage_));
  }
  T* operator->() noexcept { return &**this; }
  const T* operator->() const noexcept { return &**this; }

 private:
  Status status_{};
  bool has_value_ = false;
  alignas(T) unsigned char storage_[sizeof(T)];
};

}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
