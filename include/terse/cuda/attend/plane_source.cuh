/// Where a warp's blocks of planes lie, entry after entry: it is the reader that loads them, as
/// deep as it needs.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "terse/cache/attention.hpp"
#include "terse/config.hpp"
#include "terse/cuda/attend/block_source.cuh"
#include "terse/cuda/attend/plane_blocks.cuh"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {
namespace cuda {
namespace detail {

/// Whether the attention kernel loads the policy's planes as deep as it needs.
template <class Ref, int Width>
[[nodiscard]] consteval bool reads_planes() {
  using K = typename Ref::policy::key_codec;
  using V = typename Ref::policy::value_codec;
  if constexpr (ExponentPlanes<K> && ExponentPlanes<V> && !Ref::policy::projects) {
    return PlaneKeys<K, Width, 1>::supported && PlaneValues<V, Width, 1>::supported;
  } else {
    return false;
  }
}

template <class Config, class Segment>
class PlaneSource {
  using Ref = typename Config::Ref;
  using Policy = typename Ref::policy;

 public:
  using Keys = PlaneKeys<typename Policy::key_codec, Config::width, Config::tiles>;
  using Values = PlaneValues<typename Policy::value_codec, Config::width, Config::tiles>;
  static constexpr bool reads_planes = true;
  static constexpr bool fills_early = false;
  static constexpr int place_bytes =
      Keys::piece_bytes > Values::piece_bytes ? Keys::piece_bytes : Values::piece_bytes;
  static constexpr int shared_bytes =
      Config::warps * (plane_pieces * place_bytes + static_cast<int>(sizeof(EntryNote)));

  __device__ PlaneSource(std::byte* shared, int warp, int lane)
      : note_(reinterpret_cast<EntryNote*>(shared + Config::warps * (plane_pieces * place_bytes)) +
              warp),
        places_(shared_address(shared) + static_cast<unsigned>(warp * plane_pieces * place_bytes)),
        lane_(lane) {}

  /// Shared address of the place of piece 0; the others follow, place_bytes apart.
  [[nodiscard]] __device__ __forceinline__ std::uint32_t places() const { return places_; }

  __device__ __forceinline__ void start(const AttendCall<Ref>& call, const Segment& s, int warp) {
    warp_ = warp;
    window_.start(call, s, warp);
  }
  __device__ __forceinline__ void prefetch(const AttendCall<Ref>&) const {}
  __device__ __forceinline__ void renew(const AttendCall<Ref>& call) { window_.renew(call); }
  __device__ __forceinline__ void fill(const AttendCall<Ref>& call, const Segment* following) {
    following_ = following;
    window_.settle(call);
  }
  __device__ __forceinline__ void enter_following(const AttendCall<Ref>& call) {
    start(call, *following_, warp_);
  }
  [[nodiscard]] __device__ __forceinline__ bool has_block() const { return window_.waiting() != 0; }

  /// The next block, by all lanes.
  [[nodiscard]] __device__ __forceinline__ const std::byte* take() {
    const int holder = window_.next_holder();
    if (lane_ == holder) *note_ = window_.note();
    __syncwarp();
    return block_of(holder);
  }
  /// The block behind the one that was taken last, or null where it is not known yet or there is
  /// none. By all lanes.
  [[nodiscard]] __device__ __forceinline__ const std::byte* ahead() const {
    const unsigned behind = window_.waiting() & (window_.waiting() - 1);
    return behind == 0 ? nullptr : block_of(__ffs(static_cast<int>(behind)) - 1);
  }
  /// Of the block that was taken last; in shared memory.
  [[nodiscard]] __device__ __forceinline__ const EntryNote& note() const { return *note_; }
  __device__ __forceinline__ void release(const AttendCall<Ref>& call) {
    __syncwarp();
    window_.advance(call);
  }

 private:
  /// That of a lane's entry.
  [[nodiscard]] __device__ __forceinline__ const std::byte* block_of(int holder) const {
    const auto address =
        static_cast<unsigned long long>(reinterpret_cast<std::uintptr_t>(window_.block()));
    return reinterpret_cast<const std::byte*>(
        static_cast<std::uintptr_t>(__shfl_sync(~0u, address, holder)));
  }

  EntryWindow<Ref, Segment, Config::warps> window_;
  const Segment* following_ = nullptr;
  EntryNote* note_;
  std::uint32_t places_;
  int lane_, warp_ = 0;
};

template <class Config, class Segment>
[[nodiscard]] consteval auto source_of() {
  if constexpr (Config::reads_values && reads_planes<typename Config::Ref, Config::width>()) {
    return std::type_identity<PlaneSource<Config, Segment>>{};
  } else {
    return std::type_identity<BlockSource<Config, Segment>>{};
  }
}
/// What a kernel's warps take blocks from.
template <class Config, class Segment>
using SourceOf = typename decltype(source_of<Config, Segment>())::type;

}  // namespace detail
}  // namespace cuda
}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
