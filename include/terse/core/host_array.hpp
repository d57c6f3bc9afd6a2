/// Fixed-size host memory, allocated once, without exceptions.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>

#include "terse/config.hpp"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {

template <class T>
class HostArray {
 public:
  HostArray() = default;
  /// Value-initialised elements; data() is null if there is no memory.
  explicit HostArray(std::int64_t size)
      : data_(new (std::nothrow) T[static_cast<std::size_t>(size)]()) {}

  [[nodiscard]] T* data() const noexcept { return data_.get(); }
  T& operator[](std::int64_t i) const noexcept { return data_.get()[i]; }

 private:
  std::unique_ptr<T[]> data_;
};

}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
