/// Changes of a cache that the host decides and the device carries out.
///
/// Bookkeeping runs on the host, over a mirror of the tables. A journal lists what it changed:
/// words of the tables, pages and tails to clear or copy. It travels as the arguments of a kernel,
/// which the launch copies, so no staging memory has to outlive the call and nothing waits.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <cuda_runtime.h>
#include <type_traits>

#include "terse/config.hpp"
#include "terse/core/math.hpp"
#include "terse/cuda/launch.cuh"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {
namespace cuda {
namespace detail {

enum class ChangeKind : std::uint32_t {
  store,  ///< up to eight bytes of a table
  clear,
  copy,
};

/// One change. Addresses are the device's.
struct Change {
  std::uint64_t to;
  std::uint64_t
      from;  ///< store: the value, until it is sent its place on the host; copy: the address
  std::uint32_t bytes;
  ChangeKind kind;
};

template <int Capacity>
struct JournalPage {
  int count;
  Change changes[Capacity];
};

/// Kernel arguments hold 4 KB at little cost, and 32,764 bytes at most.
inline constexpr int small_journal = 160, large_journal = 1360;
static_assert(sizeof(JournalPage<small_journal>) <= 4096 &&
              sizeof(JournalPage<large_journal>) <= 32764);

/// Most bytes that one change clears or copies: the share of a warp.
inline constexpr std::size_t change_bytes = 16 * 1024;

/// Clears or copies with words of type T.
template <class T>
__device__ __forceinline__ void move_words(const Change& change, unsigned lane) {
  T* to = reinterpret_cast<T*>(change.to);
  const T* from = reinterpret_cast<const T*>(change.from);
  const auto words = change.bytes / static_cast<std::uint32_t>(sizeof(T));
  if (change.kind == ChangeKind::copy) {
#pragma unroll 4
    for (unsigned i = lane; i < words; i += 32) to[i] = from[i];
  } else {
#pragma unroll 4
    for (unsigned i = lane; i < words; i += 32) to[i] = T{};
  }
}

inline constexpr int journal_threads = 256;

/// A warp a change.
template <int Capacity>
__global__ void __launch_bounds__(journal_threads)
    apply_changes(const __grid_constant__ JournalPage<Capacity> page) {
  const unsigned lane = threadIdx.x % 32;
  const int i = static_cast<int>((blockIdx.x * blockDim.x + threadIdx.x) / 32);
  if (i >= page.count) return;
  const Change change = page.changes[i];
  if (change.kind == ChangeKind::store) {
    if (lane < change.bytes) {
      reinterpret_cast<std::byte*>(change.to)[lane] =
          static_cast<std::byte>(change.from >> (8 * lane));
    }
    return;
  }
  const std::uint64_t grain =
      change.to | change.bytes | (change.kind == ChangeKind::copy ? change.from : 0);
  if (grain % sizeof(uint4) == 0) {
    move_words<uint4>(change, lane);
  } else if (grain % sizeof(std::uint32_t) == 0) {
    move_words<std::uint32_t>(change, lane);
  } else {
    move_words<std::uint8_t>(change, lane);
  }
}

/// Collects the changes of one call and sends them in the order of its stream. A launch that fails
/// leaves the device behind the host for good, so its status stays.
class Journal {
 public:
  /// Tables at `mirror` have their like at `device`.
  void bind(std::byte* mirror, std::byte* device) noexcept {
    mirror_ = mirror;
    device_ = device;
  }
  void begin(cudaStream_t stream) noexcept { stream_ = stream; }
  [[nodiscard]] Status status() const noexcept { return status_; }
  /// What was to be done on the device beside the journal's changes has failed half-way. Gives
  /// `status`.
  Status break_off(const Status& status) noexcept { return status_ = status; }

  /// Tells of `bytes` written at `table`. What they are is read when the journal is sent.
  void wrote(const void* table, std::size_t bytes) noexcept {
    const auto* at = static_cast<const std::byte*>(table);
    while (bytes > 0) {
      std::size_t piece = 8;
      while (piece > bytes || reinterpret_cast<std::uintptr_t>(at) % piece != 0) piece /= 2;
      add({address(device_of(at)), address(at), static_cast<std::uint32_t>(piece),
           ChangeKind::store});
      at += piece;
      bytes -= piece;
    }
  }
  void clear(std::byte* to, std::size_t bytes) noexcept { split(ChangeKind::clear, to, to, bytes); }
  void copy(std::byte* to, const std::byte* from, std::size_t bytes) noexcept {
    split(ChangeKind::copy, to, from, bytes);
  }
  void copy_table(const void* to, const void* from, std::size_t bytes) noexcept {
    copy(device_of(to), device_of(from), bytes);
  }

  /// Sends what there is.
  void send() noexcept {
    if (page_.count == 0) return;
    for (int i = 0; i < page_.count; ++i) {
      Change& change = page_.changes[i];
      if (change.kind != ChangeKind::store) continue;
      std::uint64_t value = 0;
      std::memcpy(&value, reinterpret_cast<const void*>(change.from), change.bytes);
      change.from = value;
    }
    if (page_.count <= small_journal) {
      JournalPage<small_journal> page;
      page.count = page_.count;
      std::memcpy(page.changes, page_.changes,
                  static_cast<std::size_t>(page_.count) * sizeof(Change));
      launch(page);
    } else {
      launch(page_);
    }
    page_.count = 0;
  }

 private:
  static std::uint64_t address(const std::byte* p) noexcept {
    return static_cast<std::uint64_t>(reinterpret_cast<std::uintptr_t>(p));
  }
  [[nodiscard]] std::byte* device_of(const void* table) const noexcept {
    return device_ + (static_cast<const std::byte*>(table) - mirror_);
  }
  void add(const Change& change) noexcept {
    if (page_.count == large_journal) send();
    page_.changes[page_.count++] = change;
  }
  void split(ChangeKind kind, std::byte* to, const std::byte* from, std::size_t bytes) noexcept {
    for (std::size_t at = 0; at < bytes; at += change_bytes) {
      const std::size_t piece = bytes - at < change_bytes ? bytes - at : change_bytes;
      add({address(to + at), address(from + at), static_cast<std::uint32_t>(piece), kind});
    }
  }
  template <int Capacity>
  void launch(const JournalPage<Capacity>& page) noexcept {
    if (!status_.ok()) return;
    status_ = launch_kernel(
        {dim3(static_cast<unsigned>(ceil_div(page.count, journal_threads / 32))), journal_threads},
        stream_,
        "terse::cuda::KVCache: a launch failed, so that the device no longer has what the host "
        "believes; create the cache anew",
        apply_changes<Capacity>, page);
  }

  std::byte* mirror_ = nullptr;
  std::byte* device_ = nullptr;
  cudaStream_t stream_ = nullptr;
  Status status_{};
  JournalPage<large_journal> page_{};
};

/// Memory of a cache (cache/host_memory.hpp) whose tables are a mirror and whose pages and tails
/// lie on the device. Without a journal only the mirror changes.
struct MirroredMemory {
  Journal* journal = nullptr;

  template <class T>
  void wrote(const T* table, std::size_t count = 1) const noexcept {
    if (journal != nullptr) journal->wrote(table, count * sizeof(T));
  }
  template <class T>
  void set(T& place, std::type_identity_t<T> value) const noexcept {
    place = value;
    wrote(&place);
  }
  template <class T>
  void copy_table(T* to, const T* from, std::size_t count) const noexcept {
    std::memcpy(static_cast<void*>(to), from, count * sizeof(T));
    if (journal != nullptr) journal->copy_table(to, from, count * sizeof(T));
  }
  void clear_bytes(std::byte* to, std::size_t bytes) const noexcept {
    if (journal != nullptr) journal->clear(to, bytes);
  }
  void copy_bytes(std::byte* to, const std::byte* from, std::size_t bytes) const noexcept {
    if (journal != nullptr) journal->copy(to, from, bytes);
  }
  void order() const noexcept {
    if (journal != nullptr) journal->send();
  }
};

}  // namespace detail
}  // namespace cuda
}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
