/// How bookkeeping reaches the bytes of a cache.
///
/// Bookkeeping reads and writes *tables*, which lie in the state buffer. The bytes of pages and
/// tails it only clears and copies, so these need not be addressable by the processor that it runs
/// on. A memory is told of the tables that were written and does everything to pages and tails:
///
///   void wrote(const T* table, std::size_t count);         // told after the write
///   void set(T& place, T value);                           // a write, and wrote
///   void copy_table(T* to, const T* from, std::size_t count);
///   void clear_bytes(std::byte* to, std::size_t bytes);
///   void copy_bytes(std::byte* to, const std::byte* from, std::size_t bytes);
///   void order();             // what follows happens after what came before
///
/// Copies and clearings between two calls of order may be carried out in any order. Evictors'
/// choice and observation write tables directly, and so serve HostMemory only; compaction
/// (row_rewriter.hpp) and loading (load.hpp) have targets of their own, saving a source (save.hpp).
#pragma once

#include <cstddef>
#include <cstring>
#include <type_traits>

#include "terse/config.hpp"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {
namespace detail {

/// Everything is addressable here.
struct HostMemory {
  template <class T>
  static void wrote(const T*, std::size_t = 1) noexcept {}
  template <class T>
  static void set(T& place, std::type_identity_t<T> value) noexcept {
    place = value;
  }
  template <class T>
  static void copy_table(T* to, const T* from, std::size_t count) noexcept {
    std::memcpy(static_cast<void*>(to), from, count * sizeof(T));
  }
  static void clear_bytes(std::byte* to, std::size_t bytes) noexcept { std::memset(to, 0, bytes); }
  static void copy_bytes(std::byte* to, const std::byte* from, std::size_t bytes) noexcept {
    std::memcpy(to, from, bytes);
  }
  static void order() noexcept {}
};

}  // namespace detail
}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
