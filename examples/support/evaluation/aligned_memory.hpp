#pragma once

#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>

#include "terse/core/span.hpp"

namespace terse::examples {

/// 128-byte aligned memory, zeroed.
class AlignedMemory {
 public:
  void resize(std::size_t bytes) {
    if (bytes <= size_) return;
    data_.reset(static_cast<std::byte*>(std::aligned_alloc(128, bytes / 128 * 128 + 128)));
    if (!data_) throw std::bad_alloc();
    std::memset(data_.get(), 0, bytes);
    size_ = bytes;
  }
  [[nodiscard]] Span<std::byte> span() const { return {data_.get(), size_}; }

 private:
  struct Free {
    void operator()(std::byte* p) const { std::free(p); }
  };
  std::unique_ptr<std::byte, Free> data_;
  std::size_t size_ = 0;
};

}  // namespace terse::examples
