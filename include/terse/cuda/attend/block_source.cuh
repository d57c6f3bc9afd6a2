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
#include "terse/cuda/attend/element_fields.cuh"
#include "terse/cuda/attend/level_fields.cuh"
#include "terse/cuda/attend/plain_blocks.cuh"
#include "terse/cuda/attend/trellis_fields.cuh"
#include "terse/cuda/attend/work_division.cuh"
#include "terse/cuda/warp/block_ring.cuh"
#include "terse/policy/identity.hpp"
#include "terse/quant/affine_group.hpp"
#include "terse/quant/plane_exponents.hpp"

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
  // Only values are read from codes of 1 bit.
  using Keys = std::conditional_t<AffineFormat{Codec::affine_format}.bits == 1, void,
                                  AffineKeys<Codec, Width, Tiles>>;
  using Values = AffineValues<Codec, Width, Tiles>;
};
template <TokenLevels Codec, int Width, int Tiles>
struct ReadersOf<Codec, Width, Tiles> {
  using Affine = LevelsAsAffine<Codec, Codec::bits, LaneLevels<Codec>>;
  using Keys = AffineKeys<Affine, Width, Tiles>;
  using Values = AffineValues<Affine, Width, Tiles>;
};
template <ScaledElements Codec, int Width, int Tiles>
struct ReadersOf<Codec, Width, Tiles> {
  using Affine = LevelsAsAffine<Codec, Codec::bits, LaneElements<Codec>>;
  using Keys = AffineKeys<Affine, Width, Tiles>;
  using Values = AffineValues<Affine, Width, Tiles>;
};
template <TrellisFields Codec, int Width, int Tiles>
struct ReadersOf<Codec, Width, Tiles> {
  static constexpr int bits = Codec::trellis_spec.bits;
  using Affine = LevelsAsAffine<Codec, bits, LaneTrellis<bits>>;
  using Keys = std::conditional_t<bits == 1, void, AffineKeys<Affine, Width, Tiles>>;
  using Values = AffineValues<Affine, Width, Tiles>;
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
    return f.bits == 1   ? "affine_1_bit_per_token"
           : f.bits == 2 ? "affine_2_bit_per_token"
           : f.bits == 3 ? "affine_3_bit_per_token"
           : f.bits == 4 ? "affine_4_bit_per_token"
                         : "affine_8_bit_per_token";
  } else if constexpr (TokenLevels<Codec>) {
    return Codec::bits == 2 ? "levels_2_bit" : Codec::bits == 3 ? "levels_3_bit" : "levels_4_bit";
  } else if constexpr (ScaledElements<Codec>) {
    return "elements_4_bit";
  } else if constexpr (TrellisFields<Codec>) {
    return Codec::trellis_spec.bits == 1   ? "trellis_1_bit"
           : Codec::trellis_spec.bits == 2 ? "trellis_2_bit"
                                           : "trellis_3_bit";
  } else if constexpr (PlainCodec<Codec>) {
    return Codec::plain_format == PlainFormat::f16 ? "plain_f16" : "plain_e4m3";
  } else if constexpr (ExponentPlanes<Codec>) {
    return "planes_8_4_4";
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

/// An entry that a warp is to read, and what is to be done with its logits.
struct alignas(16) EntryNote {
  std::uint64_t live = 0;
  std::uint32_t word = 0;  ///< entry, and flags

  EntryNote() = default;
  /// `is_common`: every row reads the tokens that live. `is_capped`: logits are soft-capped.
  __device__ __forceinline__ EntryNote(int entry, std::uint64_t live_mask, bool is_common,
                                       bool is_capped)
      : live(live_mask),
        word(static_cast<std::uint32_t>(entry) | (is_common ? 0u : differs) |
             (is_common && live_mask == ~std::uint64_t{0} && !is_capped ? 0u : changed)) {}
  [[nodiscard]] __device__ __forceinline__ int entry() const {
    return static_cast<int>(word & ~(differs | changed));
  }
  [[nodiscard]] __device__ __forceinline__ bool is_common() const { return (word & differs) == 0; }
  /// Whether logits are taken as they are.
  [[nodiscard]] __device__ __forceinline__ bool is_plain() const { return (word & changed) == 0; }

  static constexpr std::uint32_t changed = 1u << 31, differs = 1u << 30;
};
static_assert(sizeof(EntryNote) == 16);

/// The entries that one warp reads, every `Warps`-th of a segment, dead ones left out; then those
/// of the segment that follows. Table and masks are read 32 entries at a time, one a lane, a window
/// ahead of their use.
template <class Ref, class Segment, int Warps>
class EntryWindow {
 public:
  /// Begins to load the first window. `segment` lies in shared memory and must outlive its entries.
  __device__ __forceinline__ void start(const AttendCall<Ref>& call, const Segment& segment,
                                        int warp) {
    warp_ = warp;
    waiting_ = 0;
    following_ = nullptr;
    is_following_ = ahead_follows_ = false;
    load_first(call, &segment);
  }
  /// Names the segment that follows the present one, or null.
  __device__ __forceinline__ void follow(const AttendCall<Ref>& call, const Segment* segment) {
    following_ = segment;
    if (ahead_ == nullptr) cross(call);
  }
  /// The segment that follows becomes the present one.
  __device__ __forceinline__ void enter_following() {
    is_following_ = false;
    ahead_follows_ = false;
  }

  /// Reads again what an append may have changed since `start`.
  __device__ __forceinline__ void renew(const AttendCall<Ref>& call) {
    const int e = own_entry();
    if (ahead_ != nullptr && e < end(*ahead_) && e >= ahead_->work.unwritten) {
      next_live_ = __ldcg(&call.r.live_mask(ahead_->work.sequence, ahead_->unit, e));
    }
  }
  /// The block of the calling lane's entry in the window ahead, or null.
  [[nodiscard]] __device__ __forceinline__ const std::byte* block_ahead(
      const AttendCall<Ref>& call) const {
    return ahead_ != nullptr && is_readable(call) ? block_of(call) : nullptr;
  }

  /// Lanes that hold entries which wait; the lowest one's is the next.
  [[nodiscard]] __device__ __forceinline__ unsigned waiting() const { return waiting_; }
  [[nodiscard]] __device__ __forceinline__ int next_holder() const {
    return __ffs(static_cast<int>(waiting_)) - 1;
  }
  /// Whether those are the following segment's.
  [[nodiscard]] __device__ __forceinline__ bool is_following() const { return is_following_; }
  /// Those of the calling lane's entry.
  [[nodiscard]] __device__ __forceinline__ const EntryNote& note() const { return note_; }
  [[nodiscard]] __device__ __forceinline__ const std::byte* block() const { return block_; }

  __device__ __forceinline__ void advance(const AttendCall<Ref>& call) {
    waiting_ &= waiting_ - 1;
    if (waiting_ == 0) settle(call);
  }
  /// Makes the window ahead the current one, until one has a live entry or none is left.
  __device__ __forceinline__ void settle(const AttendCall<Ref>& call) {
    while (waiting_ == 0 && ahead_ != nullptr) {
      const int e = own_entry();
      const bool has_window = call.params.sliding_window_tokens > 0;
      const bool is_capped = call.params.logit_soft_cap > 0;
      const int common_end = has_window ? 0 : ahead_->work.plain_end;
      const bool is_common = e >= masked_entries(call.r) && e < common_end;
      note_ = {e, next_live_, is_common, is_capped};
      block_ = block_of(call);
      waiting_ = __ballot_sync(~0u, is_readable(call));
      is_following_ = ahead_follows_;
      ahead_begin_ += 32 * Warps;
      if (ahead_begin_ < end(*ahead_)) {
        load(call);
      } else {
        cross(call);
      }
    }
  }

 private:
  [[nodiscard]] __device__ __forceinline__ static int end(const Segment& segment) {
    const int sealed = segment.work.sequence < 0 ? 0 : segment.work.decoded;
    return segment.vectors <= 0 ? 0 : (segment.end < sealed ? segment.end : sealed);
  }
  [[nodiscard]] __device__ __forceinline__ int own_entry() const {
    return ahead_begin_ + Warps * (static_cast<int>(threadIdx.x) & 31);
  }
  [[nodiscard]] __device__ __forceinline__ bool is_readable(const AttendCall<Ref>& call) const {
    return next_live_ != 0 && next_page_ >= 0 && next_page_ < call.r.shape.num_pages;
  }
  [[nodiscard]] __device__ __forceinline__ const std::byte* block_of(
      const AttendCall<Ref>& call) const {
    return call.r.pages +
           static_cast<std::uint64_t>(static_cast<std::uint32_t>(next_page_)) *
               static_cast<std::uint32_t>(call.r.shape.page_bytes) +
           static_cast<std::size_t>(call.r.unit_in_row(ahead_->unit)) * call.r.shape.unit_bytes;
  }
  __device__ __forceinline__ void cross(const AttendCall<Ref>& call) {
    ahead_follows_ = true;
    load_first(call, following_);
    following_ = nullptr;
  }
  __device__ __forceinline__ void load_first(const AttendCall<Ref>& call, const Segment* segment) {
    ahead_ = segment;
    if (segment == nullptr) return;
    ahead_begin_ = segment->begin + warp_;
    load(call);
  }
  /// Begins to load the window at ahead_begin_; past the first-level cache, where a line read early
  /// would hide what an append writes.
  __device__ __forceinline__ void load(const AttendCall<Ref>& call) {
    const int e = own_entry();
    const bool inside = e < end(*ahead_);
    const int sequence = ahead_->work.sequence;
    next_page_ = inside ? call.r.page(sequence, ahead_->list, e) : no_page;
    next_live_ = inside ? __ldcg(&call.r.live_mask(sequence, ahead_->unit, e)) : 0;
  }

  // The current window.
  unsigned waiting_ = 0;
  bool is_following_ = false;
  EntryNote note_;
  const std::byte* block_ = nullptr;
  // The window ahead of it.
  const Segment* ahead_ = nullptr;
  int ahead_begin_ = 0;
  bool ahead_follows_ = false;
  std::int32_t next_page_ = no_page;
  std::uint64_t next_live_ = 0;
  const Segment* following_ = nullptr;
  int warp_ = 0;
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
  static constexpr int barriers_bytes = 128;  ///< and notes of the blocks in flight
  static constexpr int notes_offset = round_up(Ring::barrier_bytes, 16);
  static_assert(notes_offset + Config::stages * static_cast<int>(sizeof(EntryNote)) <=
                barriers_bytes);

 public:
  static constexpr bool reads_planes = false;
  /// Whether `fill` fetches blocks, which it may do before the kernel in front has ended.
  static constexpr bool fills_early = true;
  static constexpr int shared_bytes = Config::warps * (ring_bytes + barriers_bytes);

  __device__ __forceinline__ BlockSource(std::byte* shared, int warp, int lane) {
    std::byte* barriers = shared + Config::warps * ring_bytes + warp * barriers_bytes;
    ring_.start(shared_address(shared + warp * ring_bytes), shared_address(barriers), lane);
    notes_ = reinterpret_cast<EntryNote*>(barriers + notes_offset);
  }

  /// Begins to load the table of a segment, whose blocks `fill` then fetches.
  __device__ __forceinline__ void start(const AttendCall<Ref>& call, const Segment& s, int warp) {
    second_part_ = false;
    blocks_ = following_blocks_ = 0;
    window_.start(call, s, warp);
  }
  /// Between `start` and `fill`, while a kernel in front may still append: brings the first blocks
  /// into the second-level cache, up to 16 KB a warp, which it holds for all of them.
  __device__ __forceinline__ void prefetch(const AttendCall<Ref>& call) const {
#if __CUDA_ARCH__ >= 900
    constexpr int bytes = key_bytes + value_bytes, most_bytes = 16 * 1024;
    constexpr int blocks = clamp(most_bytes / bytes, 1, Config::stages);
    const std::byte* block = window_.block_ahead(call);
    if ((threadIdx.x & 31) < blocks && block != nullptr) {
      asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(block),
                   "r"(bytes < most_bytes ? bytes : key_bytes));
    }
#endif
  }
  /// That kernel has ended.
  __device__ __forceinline__ void renew(const AttendCall<Ref>& call) { window_.renew(call); }
  /// Begins to fetch blocks: those of the present segment, and behind them those of the one that
  /// follows, or null.
  __device__ __forceinline__ void fill(const AttendCall<Ref>& call, const Segment* following) {
    window_.follow(call, following);
    window_.settle(call);
#pragma unroll 1
    while (ring_.in_flight() < Config::stages && window_.waiting() != 0) feed(call);
  }
  /// The segment that follows becomes the present one, of which no block is left.
  __device__ __forceinline__ void enter_following(const AttendCall<Ref>&) {
    window_.enter_following();
    blocks_ = following_blocks_;
    following_blocks_ = 0;
  }

  /// Whether a block of the present segment is left.
  [[nodiscard]] __device__ __forceinline__ bool has_block() const { return blocks_ > 0; }

  /// Waits for the next block; gives the shared address of its keys.
  __device__ __forceinline__ std::uint32_t wait(const AttendCall<Ref>&) {
    at_ = ring_.wait();
    return at_;
  }
  /// Keys have been read.
  __device__ __forceinline__ void next_part(const AttendCall<Ref>& call) {
    if constexpr (in_two) {
      ring_.release();
      feed(call);
      at_ = ring_.wait();
    }
  }
  /// Of the block that was waited for last, between next_part and release; in shared memory.
  [[nodiscard]] __device__ __forceinline__ const EntryNote& note() const {
    return notes_[ring_.read_place()];
  }
  [[nodiscard]] __device__ __forceinline__ std::uint32_t values() const {
    return in_two ? at_ : at_ + key_bytes;
  }
  __device__ __forceinline__ void release(const AttendCall<Ref>& call) {
    ring_.release();
    --blocks_;
    feed(call);
  }

 private:
  __device__ __forceinline__ void feed(const AttendCall<Ref>& call) {
    if (window_.waiting() == 0) return;
    const bool is_values = in_two && second_part_;
    const int bytes = is_values ? value_bytes : in_two ? key_bytes : key_bytes + value_bytes;
    ring_.fetch(window_.block() + (is_values ? key_bytes : 0), bytes, window_.next_holder(),
                [&](int place) { notes_[place] = window_.note(); });
    if (!is_values) {
      blocks_ += window_.is_following() ? 0 : 1;
      following_blocks_ += window_.is_following() ? 1 : 0;
    }
    second_part_ = in_two && !second_part_;
    if (!second_part_) window_.advance(call);
  }

  Ring ring_;
  EntryWindow<Ref, Segment, Config::warps> window_;
  EntryNote* notes_;  // by place, shared memory
  std::uint32_t at_ = 0;
  int blocks_ = 0, following_blocks_ = 0;  // fetched and not released
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
  static constexpr bool reads_planes = false;
  static constexpr bool fills_early = false;
  static constexpr int shared_bytes =
      Config::warps * (tile_bytes + static_cast<int>(sizeof(EntryNote)));

  __device__ BlockSource(std::byte* shared, int warp, int lane)
      : note_(reinterpret_cast<EntryNote*>(shared + Config::warps * tile_bytes) + warp),
        tile_(shared + warp * tile_bytes),
        lane_(lane) {}

  __device__ void start(const AttendCall<Ref>& call, const Segment& s, int warp) {
    segment_ = &s;
    warp_ = warp;
    window_.start(call, s, warp);
  }
  __device__ void prefetch(const AttendCall<Ref>&) const {}
  __device__ void renew(const AttendCall<Ref>& call) { window_.renew(call); }
  __device__ void fill(const AttendCall<Ref>& call, const Segment* following) {
    following_ = following;
    window_.settle(call);
  }
  __device__ void enter_following(const AttendCall<Ref>& call) { start(call, *following_, warp_); }
  [[nodiscard]] __device__ bool has_block() const { return window_.waiting() != 0; }

  __device__ std::uint32_t wait(const AttendCall<Ref>& call) {
    if (lane_ == window_.next_holder()) *note_ = window_.note();
    __syncwarp();
    decode<typename Policy::key_codec>(call, Side::key, call.r.shape.key_offset(0));
    return shared_address(tile_);
  }
  [[nodiscard]] __device__ const EntryNote& note() const { return *note_; }
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
    CodecContext context = call.r.context(side, segment_->unit, 0);
    context.width = Config::width;
    const std::byte* block =
        call.r.block(segment_->work.sequence, segment_->unit, note_->entry()) + offset;
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
  const Segment* segment_ = nullptr;
  const Segment* following_ = nullptr;
  EntryNote* note_;  // shared memory
  std::byte* tile_;
  int lane_, warp_ = 0;
};

}  // namespace detail
}  // namespace cuda
}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
