/// Compaction of a device cache: planned over the mirror, with the host's code, and carried out on
/// the device.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cuda_runtime.h>

#include "terse/cache/compact.hpp"
#include "terse/config.hpp"
#include "terse/cuda/cache/check_sequences.cuh"
#include "terse/cuda/cache/device_state.cuh"
#include "terse/cuda/compact/compact_kernel.cuh"
#include "terse/cuda/launch.cuh"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {
namespace cuda {
namespace detail {

inline constexpr const char* compact_failed =
    "terse::cuda::KVCache::compact: a launch failed, so that the device no longer has what the "
    "host believes; create the cache anew";

/// What terse::detail::RowRewriter does to blocks, collected and launched. Tables that kernels read
/// follow by the journal, behind the last launch that is about their row.
template <class State, class Store>
class DeviceBlocks {
 public:
  using Ref = typename Store::Ref;
  using Call = CompactCall<Ref>;

  /// `sources`: the class's table in the mirror.
  DeviceBlocks(State& state, const Store& store, EntrySource* sources, int sequence,
               cudaStream_t stream) noexcept
      : state_(state), store_(store), sources_(sources), stream_(stream) {
    call_.r = state.view(store, 0);
    call_.sources = state.on_device(sources);
    call_.sequence = sequence;
  }
  [[nodiscard]] const Status& status() const noexcept { return status_; }

  void begin_row(const Ref& r, int row, int sealed) noexcept {
    if (call_.num_rows == Call::most_rows || needs_another_calibration(r)) settle();
    if constexpr (uses_calibration<typename Ref::policy>) call_.r.calibration = r.calibration;
    row_ = {r.slot, row, 0, sealed, num_sources_, 0};
    changed_from_[call_.num_rows] = 0;
    is_open_ = true;
  }
  void keep(int entry) noexcept {
    const bool is_as_it_was =
        entry == row_.first_entry && changed_from_[call_.num_rows] == row_.first_entry;
    if (is_as_it_was && row_.count == 0) {
      changed_from_[call_.num_rows] = ++row_.first_entry;
    } else {
      add({no_page, entry});
    }
  }
  void begin_block(std::int32_t page, std::int64_t first) noexcept {
    add({Ref::layout::paged ? page : 0, static_cast<std::int32_t>(first)});
  }
  void write(const Ref& r, int sequence, int unit, int entry, std::int32_t,
             const terse::detail::PackedTokens<Store>& tokens) noexcept {
    terse::detail::describe_packed<Store>(r, sequence, unit, entry, tokens);
  }
  void end_row() noexcept {
    call_.rows[call_.num_rows++] = row_;
    is_open_ = false;
  }
  void settle() noexcept {
    const int finished = call_.num_rows;
    if (is_open_) call_.rows[call_.num_rows++] = row_;
    launch();
    for (int i = 0; i < finished; ++i) tell(call_.rows[i], changed_from_[i]);
    if (is_open_) changed_from_[0] = changed_from_[finished];
    call_.num_rows = 0;
    row_.first_entry += row_.count;
    row_.begin = num_sources_;
    row_.count = 0;
  }

 private:
  /// A launch encodes with one slot's calibration.
  [[nodiscard]] bool needs_another_calibration(const Ref& r) const noexcept {
    using Policy = typename Ref::policy;
    if constexpr (uses_calibration<Policy> && !terse::detail::moves_exactly<Policy>) {
      return call_.num_rows > 0 && (r.calibration.keys != call_.r.calibration.keys ||
                                    r.calibration.values != call_.r.calibration.values);
    }
    return false;
  }
  void add(const EntrySource& source) noexcept {
    sources_[num_sources_++] = source;
    ++row_.count;
  }
  void launch() noexcept {
    if (num_sources_ == num_sent_ || !status_.ok()) return;
    status_ = to_status(
        cudaMemcpyAsync(state_.on_device(sources_) + num_sent_, sources_ + num_sent_,
                        static_cast<std::size_t>(num_sources_ - num_sent_) * sizeof *sources_,
                        cudaMemcpyHostToDevice, stream_),
        compact_failed);
    num_sent_ = num_sources_;
    if (!status_.ok()) return;
    const int units = store_.shape.units_per_row;
    status_ = launch_kernel({dim3(static_cast<unsigned>(call_.num_rows * units)), compact_threads,
                             compact_shared_bytes<Ref>(store_.shape)},
                            stream_, compact_failed, compact_kernel<Ref>, call_);
  }
  /// The journal reads tables when it is sent, which is behind the launch.
  void tell(const CompactRow& row, int changed_from) noexcept {
    const Ref r = store_.ref(row.slot);
    const int& count = r.entry_count(call_.sequence, row.row);
    state_.journal().wrote(&count, sizeof count);
    if constexpr (Ref::layout::paged) {
      if (count <= changed_from) return;
      const std::int32_t& page = r.page_slot(call_.sequence, row.row, changed_from);
      state_.journal().wrote(&page, static_cast<std::size_t>(count - changed_from) * sizeof page);
    }
  }

  State& state_;
  const Store& store_;
  EntrySource* sources_;
  cudaStream_t stream_;
  Status status_{};
  Call call_{};
  int num_sources_ = 0, num_sent_ = 0;
  std::int32_t changed_from_[Call::most_rows]{};  // [row of the call]: first entry that changes
  bool is_open_ = false;                          // row_ is not among the call's rows yet
  CompactRow row_{};
};

/// Whether the device can rewrite blocks of a class.
template <class Store>
[[nodiscard]] Status prepare_compact(const Store& store) noexcept {
  using Ref = typename Store::Ref;
  return allow_shared_bytes(
      compact_kernel<Ref>, compact_shared_bytes<Ref>(store.shape),
      "terse::cuda::KVCache::compact: blocks need more shared memory than the device has; detail: "
      "bytes",
      "terse::cuda::KVCache::compact: the program holds no code for this device");
}

/// As the host's compact_sequence. Waits, before it does anything, to see whether the sequence has
/// failed; so nothing reads the mirror's sources of an earlier call any longer.
template <class State>
[[nodiscard]] Expected<CompactPlan> compact_on_device(State& state, SequenceId sequence,
                                                      bool allow_reencoding,
                                                      cudaStream_t stream) noexcept {
  Expected<CompactPlan> planned =
      terse::detail::check_compact(state.cache, sequence, allow_reencoding);
  if (!planned.ok()) return planned.status();
  Status status{};
  state.cache.for_each_store([&](const auto& store) {
    if (status.ok()) status = prepare_compact(store);
  });
  if (status.ok()) status = check_not_failed(state, {&sequence, 1}, stream);
  if (!status.ok()) return status;
  int k = 0;
  state.cache.for_each_store([&](auto& store) {
    EntrySource* sources = state.tables.sources[k++];
    if (!status.ok()) return;
    const auto told = store.memory;
    store.memory = {};
    DeviceBlocks blocks(state, store, sources, sequence.index, stream);
    terse::detail::compact_class(store, sequence.index, blocks);
    store.memory = told;
    store.memory.wrote(&store.base.grids[sequence.index]);
    status = blocks.status();
  });
  if (!status.ok()) return state.journal().break_off(status);
  return planned;
}

}  // namespace detail
}  // namespace cuda
}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
