/// Where a warp's decoded blocks come from: streamed through a ring as they are stored, or, for
/// codecs that no reader knows, decoded number by number into shared memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cuda_fp16.h>

#include "terse/cache/attention.hpp"
#include "terse/config.hpp"
#include "terse/cuda/attend/affine_keys.cuh"
#include "terse/cuda/attend/affine_values.cuh"
#include "terse/cuda/attend/plain_blocks.cuh"
#include "terse/cuda/attend/work_division.cuh"
#include "terse/cuda/warp/block_ring.cuh"
#include "terse/policy/identity.hpp"
#include "terse/quant/affine_group.hpp"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {
namespace cuda {
namespace detail {

/// The reader of a codec's blocks, or void.
template <class Codec, int Width, int Tiles>
struct ReadersOf {
  using Keys = void;
  using Values = void;
};
template <AffineCodec Codec, int Width, int Tiles>
struct ReadersOf<Codec, Width, Tiles> {
  using Keys = AffineKeys<Codec, Width, Tiles>;
  using Values = AffineValues<Codec, Width, Tiles>;
};
template <PlainCodec Codec, int Width, int Tiles>
struct ReadersOf<Codec, Width, Tiles> {
  using Keys = PlainKeys<Codec, Width, Tiles>;
  using Values = PlainValues<Codec, Width, Tiles>;
};

/// Name of the reader of a codec that has one.
template <class Codec>
consteval const char* reader_name() {
  if constexpr (AffineCodec<Codec>) {
    constexpr AffineFormat f = Codec::affine_format;
    if (f.granularity == Granularity::per_channel) {
      return f.bits == 2   ? "affine_2_bit_per_channel"
             : f.bits == 3 ? "affine_3_bit_per_channel"
             : f.bits == 4 ? "affine_4_bit_per_channel"
                           : "affine_8_bit_per_channel";
    }
    return f.bits == 2   ? "affine_2_bit_per_token"
           : f.bits == 3 ? "affine_3_bit_per_token"
           : f.bits == 4 ? "affine_4_bit_per_token"
                         : "affine_8_bit_per_token";
  } else if constexpr (PlainCodec<Codec>) {
    return Codec::plain_format == PlainFormat::f16 ? "plain_f16" : "plain_e4m3";
  } else {
    return "decode";
  }
}

template <class Reader>
consteval bool reader_serves() {
  if constexpr (std::is_void_v<Reader>) {
    return false;
  } else {
    return Reader::supported;
  }
}

/// Whether tensor-core readers take the policy's stored codes as they are.
template <class Ref, int Width>
inline constexpr bool reads_codes =
    !Ref::policy::projects &&
    reader_serves<typename ReadersOf<typename Ref::policy::key_codec, Width, 1>::Keys>() &&
    reader_serves<typename ReadersOf<typename Ref::policy::value_codec, Width, 1>::Values>();

/// Leading entries whose masks must be looked at: those that may have tokens of which exact copies
/// are kept, or of a prefix. Entry e begins at position e or later.
template <class Ref>
[[nodiscard]] __device__ __forceinline__ int masked_entries(const Ref& r) {
  const auto prefix = static_cast<int>(terse::detail::prefix_end(r));
  return prefix > r.shape.tail.sink_tokens ? prefix : r.shape.tail.sink_tokens;
}

/// A block that a warp is to read.
struct BlockInfo {
  std::uint32_t keys;  ///< shared address
  bool whole;          ///< every row reads all 64 tokens
};

/// The entries of a segment that one warp reads: every `Warps`-th, dead ones left out. Table and
/// masks are read 32 entries at a time, one a lane, a window ahead of their use.
template <class Ref, class Segment, int Warps>
class EntryWindow {
 public:
  /// `segment` lies in shared memory and must outlive the window.
  __device__ __forceinline__ void begin(const AttendCall<Ref>& call, const Segment& segment,
                                        int warp) {
    segment_ = &segment;
    next_ = segment.begin + warp;
    load(call);
    settle(call);
  }

  [[nodiscard]] __device__ __forceinline__ bool has_entry() const { return waiting_ != 0; }
  [[nodiscard]] __device__ __forceinline__ int entry() const {
    return next_ + Warps * (first() - 32);
  }
  [[nodiscard]] __device__ __forceinline__ std::int32_t page() const {
    return __shfl_sync(~0u, page_, first());
  }
  /// Whether all tokens of the entry live.
  [[nodiscard]] __device__ __forceinline__ bool is_full() const {
    return (full_ >> first() & 1u) != 0;
  }
  __device__ __forceinline__ void advance(const AttendCall<Ref>& call) {
    waiting_ &= waiting_ - 1;
    if (waiting_ == 0) settle(call);
  }
  [[nodiscard]] __device__ __forceinline__ const Segment& segment() const { return *segment_; }

 private:
  [[nodiscard]] __device__ __forceinline__ int first() const {
    return __ffs(static_cast<int>(waiting_)) - 1;
  }
  [[nodiscard]] __device__ __forceinline__ int end() const {
    const int sealed = segment_->work.sequence < 0 ? 0 : segment_->work.decoded;
    return segment_->end < sealed ? segment_->end : sealed;
  }
  /// Begins to load the window at next_.
  __device__ __forceinline__ void load(const AttendCall<Ref>& call) {
    const int e = next_ + Warps * (static_cast<int>(threadIdx.x) & 31);
    const bool inside = e < end();
    const int sequence = segment_->work.sequence;
    next_page_ = inside ? call.r.page(sequence, segment_->list, e) : no_page;
    next_live_ = inside ? call.r.live_mask(sequence, segment_->unit, e) : 0;
  }
  /// Makes the loaded window the current one, until one has a live entry or none is left.
  __device__ __forceinline__ void settle(const AttendCall<Ref>& call) {
    while (waiting_ == 0 && next_ < end()) {
      page_ = next_page_;
      const bool readable = next_live_ != 0 && page_ >= 0 && page_ < call.r.shape.num_pages;
      waiting_ = __ballot_sync(~0u, readable);
      full_ = __ballot_sync(~0u, next_live_ == ~0ull);
      next_ += 32 * Warps;
      load(call);
    }
  }

  const Segment* segment_ = nullptr;
  int next_ = 0;  ///< behind the current window
  unsigned waiting_ = 0, full_ = 0;
  std::int32_t page_ = no_page, next_page_ = no_page;
  std::uint64_t next_live_ = 0;
};

template <class Config, class Segment,
          bool Streams = reads_codes<typename Config::Ref, Config::width>>
class BlockSource;

/// Streams records. Large blocks come as two parts, keys and values; kernels that read keys only
/// never ask for values.
template <class Config, class Segment>
class BlockSource<Config, Segment, true> {
  using Ref = typename Config::Ref;
  using Policy = typename Ref::policy;

 public:
  using Keys = typename ReadersOf<typename Policy::key_codec, Config::width, Config::tiles>::Keys;
  using Values =
      typename ReadersOf<typename Policy::value_codec, Config::width, Config::tiles>::Values;

 private:
  static constexpr int key_bytes =
      static_cast<int>(Policy::key_codec::record(Side::key, Config::width).bytes);
  static constexpr int value_bytes =
      Config::reads_values
          ? static_cast<int>(Policy::value_codec::record(Side::value, Config::width).bytes)
          : 0;
  static constexpr bool in_two = Config::splits_blocks;
  static constexpr int place_bytes =
      in_two ? (key_bytes > value_bytes ? key_bytes : value_bytes) : key_bytes + value_bytes;
  using Ring = BlockRing<Config::stages, place_bytes>;
  static constexpr int ring_bytes = Config::stages * place_bytes;
  static constexpr int barriers_bytes = 128;  ///< and entries of the blocks in flight
  static constexpr int noted_blocks = 4;
  static_assert(Ring::barrier_bytes + 4 * noted_blocks <= barriers_bytes &&
                Config::stages < noted_blocks);

 public:
  static constexpr int shared_bytes = Config::warps * (ring_bytes + barriers_bytes);

  __device__ __forceinline__ BlockSource(std::byte* shared, int warp, int lane) : lane_(lane) {
    std::byte* barriers = shared + Config::warps * ring_bytes + warp * barriers_bytes;
    ring_.start(shared_address(shared + warp * ring_bytes), shared_address(barriers), lane);
    entries_ = reinterpret_cast<int*>(barriers + Ring::barrier_bytes);
  }

  /// Begins to read a segment.
  __device__ __forceinline__ void begin(const AttendCall<Ref>& call, const Segment& s, int warp) {
    whole_begin_ = masked_entries(call.r);
    whole_end_ = call.params.sliding_window_tokens > 0 ? 0 : s.work.plain_end;
    unit_pages_ = call.r.pages +
                  static_cast<std::size_t>(call.r.unit_in_row(s.unit)) * call.r.shape.unit_bytes;
    second_part_ = false;
    window_.begin(call, s, warp);
#pragma unroll 1
    for (int i = 0; i < Config::stages; ++i) feed(call);
  }

  [[nodiscard]] __device__ __forceinline__ bool has_block() const { return ring_.in_flight() > 0; }

  __device__ __forceinline__ BlockInfo wait(const AttendCall<Ref>&) {
    at_ = ring_.wait();
    ++waited_;
    const bool whole = (whole_ & 1u) != 0;
    whole_ >>= 1;
    --queued_;
    return {at_, whole};
  }
  /// Of the block that was waited for last, after next_part.
  [[nodiscard]] __device__ __forceinline__ int entry() const {
    return entries_[(waited_ - 1) % noted_blocks];
  }
  /// Keys have been read.
  __device__ __forceinline__ void next_part(const AttendCall<Ref>& call) {
    if constexpr (in_two) {
      ring_.release();
      feed(call);
      at_ = ring_.wait();
    }
    __syncwarp();  // lane 0 has noted the entry
  }
  [[nodiscard]] __device__ __forceinline__ std::uint32_t values() const {
    return in_two ? at_ : at_ + key_bytes;
  }
  __device__ __forceinline__ void release(const AttendCall<Ref>& call) {
    ring_.release();
    feed(call);
  }

 private:
  __device__ __forceinline__ void feed(const AttendCall<Ref>& call) {
    if (!window_.has_entry()) return;
    const std::byte* block =
        unit_pages_ + static_cast<std::uint64_t>(static_cast<std::uint32_t>(window_.page())) *
                          static_cast<std::uint32_t>(call.r.shape.page_bytes);
    if (!second_part_) {
      const int entry = window_.entry();
      const bool whole = window_.is_full() && entry < whole_end_ && entry >= whole_begin_;
      whole_ |= (whole ? 1u : 0u) << queued_;
      ++queued_;
      if (lane_ == 0) entries_[fed_ % noted_blocks] = entry;
      ++fed_;
    }
    if constexpr (in_two) {
      ring_.fetch(second_part_ ? block + key_bytes : block, second_part_ ? value_bytes : key_bytes,
                  lane_);
      second_part_ = !second_part_;
      if (second_part_) return;
    } else {
      ring_.fetch(block, key_bytes + value_bytes, lane_);
    }
    window_.advance(call);
  }

  Ring ring_;
  EntryWindow<Ref, Segment, Config::warps> window_;
  int* entries_;                   // by number of the block, shared memory
  unsigned whole_ = 0;             // queue of fetched blocks, a bit each
  unsigned fed_ = 0, waited_ = 0;  // blocks
  int queued_ = 0;
  int lane_;
  std::uint32_t at_ = 0;
  const std::byte* unit_pages_ = nullptr;
  int whole_begin_ = 0, whole_end_ = 0;
  bool second_part_ = false;
};

/// Decodes into fp16 tiles: keys `[channel, token]`, values `[token, channel]`.
template <class Config, class Segment>
class BlockSource<Config, Segment, false> {
  using Ref = typename Config::Ref;
  using Policy = typename Ref::policy;
  static constexpr int tile_bytes = Config::width * block_tokens * 2;

 public:
  using Keys = PlainKeys<Identity, Config::width, Config::tiles>;
  using Values = PlainValues<Identity, Config::width, Config::tiles>;
  static constexpr int shared_bytes = Config::warps * tile_bytes;

  __device__ BlockSource(std::byte* shared, int warp, int lane)
      : tile_(shared + warp * tile_bytes), lane_(lane) {}

  __device__ void begin(const AttendCall<Ref>& call, const Segment& s, int warp) {
    plain_end_ = call.params.sliding_window_tokens > 0 ? 0 : s.work.plain_end;
    window_.begin(call, s, warp);
  }
  [[nodiscard]] __device__ bool has_block() const { return window_.has_entry(); }

  __device__ BlockInfo wait(const AttendCall<Ref>& call) {
    decode<typename Policy::key_codec>(call, Side::key, call.r.shape.key_offset(0));
    const int entry = window_.entry();
    const bool whole = window_.is_full() && entry < plain_end_ && entry >= masked_entries(call.r);
    return {shared_address(tile_), whole};
  }
  [[nodiscard]] __device__ int entry() const { return window_.entry(); }
  __device__ void next_part(const AttendCall<Ref>& call) {
    __syncwarp();
    decode<typename Policy::value_codec>(call, Side::value, call.r.shape.value_offset(0));
  }
  [[nodiscard]] __device__ std::uint32_t values() const { return shared_address(tile_); }
  __device__ void release(const AttendCall<Ref>& call) {
    __syncwarp();
    window_.advance(call);
  }

 private:
  template <class Codec>
  __device__ void decode(const AttendCall<Ref>& call, Side side, std::size_t offset) {
    const CodecContext context{side, Config::width};
    const std::byte* block =
        call.r.block(window_.segment().work.sequence, window_.segment().unit, window_.entry()) +
        offset;
    auto* out = reinterpret_cast<__half*>(tile_);
#pragma unroll 1
    for (int i = lane_; i < Config::width * block_tokens; i += 32) {
      const int token = side == Side::key ? i % block_tokens : i / Config::width;
      const int channel = side == Side::key ? i / block_tokens : i % Config::width;
      const float x = Codec::decode(context, block, token, channel);
      out[i] = __float2half_rn(fminf(fmaxf(x, -f16_max), f16_max));
    }
    __syncwarp();
  }

  EntryWindow<Ref, Segment, Config::warps> window_;
  std::byte* tile_;
  int lane_;
  int plain_end_ = 0;
};

}  // namespace detail
}  // namespace cuda
}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
