/// Pointer and length, on host and device, at the price of no header.
#pragma once

#include <concepts>
#include <cstddef>

#include "terse/config.hpp"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {

template <class T>
struct Span {
  T* pointer = nullptr;
  std::size_t count = 0;

  constexpr Span() noexcept = default;
  TERSE_HOST_DEVICE constexpr Span(T* data, std::size_t size) noexcept
      : pointer(data), count(size) {}
  template <std::size_t N>
  // NOLINTNEXTLINE(google-explicit-constructor)
  TERSE_HOST_DEVICE constexpr Span(T (&array)[N]) noexcept : pointer(array), count(N) {}
  /// From any contiguous container with data() and size().
  template <class C>
    requires requires(C& c) {
      { c.data() } -> std::convertible_to<T*>;
      c.size();
    }
  // NOLINTNEXTLINE(google-explicit-constructor)
  constexpr Span(C&& container) noexcept : pointer(container.data()), count(container.size()) {}

  [[nodiscard]] TERSE_HOST_DEVICE constexpr T* data() const noexcept { return pointer; }
  [[nodiscard]] TERSE_HOST_DEVICE constexpr std::size_t size() const noexcept { return count; }
  [[nodiscard]] TERSE_HOST_DEVICE constexpr bool empty() const noexcept { return count == 0; }
  TERSE_HOST_DEVICE constexpr T& operator[](std::size_t i) const noexcept { return pointer[i]; }
  TERSE_HOST_DEVICE constexpr T* begin() const noexcept { return pointer; }
  TERSE_HOST_DEVICE constexpr T* end() const noexcept { return pointer + count; }
};

}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
