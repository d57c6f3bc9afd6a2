/// Sizes and strides of the storage of one policy class, all derived from the codecs' records.
#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>

#include "terse/cache/config.hpp"
#include "terse/config.hpp"
#include "terse/core/math.hpp"
#include "terse/layout/layout.hpp"
#include "terse/policy/compose.hpp"
#include "terse/policy/identity.hpp"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {

/// Sink tokens are stored in blocks with room for this many tokens.
inline constexpr int sink_block_tokens = 16;
/// Most channels of a head.
inline constexpr int max_head_dim = 1024;

struct ClassShape {
  int slots = 0;
  int sequences = 0;
  int query_heads = 0;
  int kv_heads = 0;
  int head_dim = 0;
  UnitShape unit{};
  int key_width = 0;           ///< channels of a key stream
  int value_width = 0;         ///< channels of a value stream
  int rows = 0;                ///< lists of entries per (slot, sequence)
  int units_per_row = 0;       ///< units that share such a list
  int entries = 0;             ///< capacity of a list
  int ring_blocks = 0;         ///< 64-token blocks of a tail
  bool open = false;           ///< tokens are encoded at append, there is no tail
  bool encodes_ahead = false;  ///< the tail has room for codes
  int max_step_tokens = 0;
  TailSpec tail{};
  Record key_record{};
  Record value_record{};
  std::size_t unit_bytes = 0;         ///< one block of one unit, all streams
  std::size_t page_bytes = 0;         ///< one block of one row
  std::size_t tail_key_bytes = 0;     ///< 64 tokens of a key stream in the tail
  std::size_t tail_value_bytes = 0;   ///< 64 tokens of a value stream in the tail
  std::size_t tail_block_bytes = 0;   ///< 64 tokens of one unit in the tail, all streams
  std::size_t sink_bytes = 0;         ///< exact sink tokens of one unit
  std::size_t tail_stride_bytes = 0;  ///< tail and sinks of one unit
  std::int64_t num_pages = 0;

  [[nodiscard]] TERSE_HOST_DEVICE int unit_query_heads() const noexcept {
    return query_heads / kv_heads * unit.heads_per_unit;
  }
  [[nodiscard]] TERSE_HOST_DEVICE std::size_t key_offset(int stream) const noexcept {
    return static_cast<std::size_t>(stream) * key_record.bytes;
  }
  [[nodiscard]] TERSE_HOST_DEVICE std::size_t value_offset(int stream) const noexcept {
    return static_cast<std::size_t>(unit.key_streams) * key_record.bytes +
           static_cast<std::size_t>(stream) * value_record.bytes;
  }
  [[nodiscard]] TERSE_HOST_DEVICE const Record& record(Side side) const noexcept {
    return side == Side::key ? key_record : value_record;
  }
  [[nodiscard]] TERSE_HOST_DEVICE std::size_t code_offset(Side side, int stream) const noexcept {
    return side == Side::key ? key_offset(stream) : value_offset(stream);
  }
  /// Byte offset of a stream in a block of the tail: key streams, then value streams.
  [[nodiscard]] TERSE_HOST_DEVICE std::size_t tail_offset(Side side, int stream) const noexcept {
    return stream_offset(side, stream, tail_key_bytes, tail_value_bytes);
  }
  /// Where blocks of the tail have room for what a stream's block is sealed to, if `encodes_ahead`.
  [[nodiscard]] TERSE_HOST_DEVICE std::size_t ahead_offset(Side side, int stream) const noexcept {
    return tail_tokens_bytes() + code_offset(side, stream);
  }
  /// Where they say, in 32 bits, which of it is there: bit i, the tokens from 8i to 8i + 7.
  [[nodiscard]] TERSE_HOST_DEVICE std::size_t ahead_mark_offset(Side side,
                                                                int stream) const noexcept {
    return tail_tokens_bytes() + unit_bytes +
           static_cast<std::size_t>(side == Side::key ? stream : unit.key_streams + stream) *
               sizeof(std::uint32_t);
  }
  static constexpr std::uint32_t all_ahead = 0xff;  ///< the mark of whole blocks
  /// Most complete blocks of a tail that are not due yet.
  [[nodiscard]] TERSE_HOST_DEVICE int most_blocks_ahead() const noexcept {
    return (tail.min_tokens + tail.granule_tokens - 1) / block_tokens;
  }
  /// Bytes of a block of the tail that its tokens take.
  [[nodiscard]] TERSE_HOST_DEVICE std::size_t tail_tokens_bytes() const noexcept {
    return tail_offset(Side::value, unit.value_streams);
  }
  /// The same in the sinks, which are 16-bit numbers.
  [[nodiscard]] TERSE_HOST_DEVICE std::size_t sink_offset(Side side, int stream) const noexcept {
    return stream_offset(side, stream,
                         static_cast<std::size_t>(key_width * sink_block_tokens) * sizeof(F16),
                         static_cast<std::size_t>(value_width * sink_block_tokens) * sizeof(F16));
  }
  /// Stored bits of a sealed block per key or value element that it stands for.
  [[nodiscard]] TERSE_HOST_DEVICE double bits_per_element() const noexcept {
    return 8.0 * static_cast<double>(unit_bytes) /
           (2.0 * block_tokens * unit.heads_per_unit * head_dim);
  }

 private:
  [[nodiscard]] TERSE_HOST_DEVICE std::size_t stream_offset(
      Side side, int stream, std::size_t key_bytes, std::size_t value_bytes) const noexcept {
    return side == Side::key ? static_cast<std::size_t>(stream) * key_bytes
                             : static_cast<std::size_t>(unit.key_streams) * key_bytes +
                                   static_cast<std::size_t>(stream) * value_bytes;
  }
};

namespace detail {

/// Whether a product of positive numbers is at most `limit`, without overflow.
[[nodiscard]] constexpr bool product_fits(std::uint64_t limit,
                                          std::initializer_list<std::uint64_t> factors) noexcept {
  for (const std::uint64_t f : factors) limit /= f > 0 ? f : 1;
  return limit > 0;
}

/// Refuses shapes whose buffers no machine holds, before sizes are computed that would overflow.
template <class Policy>
[[nodiscard]] Status check_sizes(const ClassShape& s) noexcept {
  constexpr std::uint64_t most_bytes = 1ull << 48;
  constexpr std::uint64_t most_items = 0x7fffffff;
  const auto n = [](auto value) { return static_cast<std::uint64_t>(value); };
  constexpr std::uint64_t entry_bytes =
      block_tokens * (token_state_bytes<typename Policy::evictor> + sizeof(std::uint32_t)) + 16;
  const bool state_fits = product_fits(
      most_bytes, {n(s.slots), n(s.sequences), n(s.unit.units), n(s.entries), entry_bytes});
  const bool tails_fit = product_fits(
      most_bytes, {n(s.slots), n(s.sequences), n(s.unit.units), n(s.tail_stride_bytes)});
  if (!state_fits || !tails_fit) {
    return error(StatusCode::unsupported,
                 "terse::CacheConfig: a buffer would exceed 2^48 bytes; lower max_sequences, "
                 "max_tokens, layers or heads");
  }
  const int widest = s.head_dim > s.value_width ? s.head_dim : s.value_width;
  const int vector_floats = widest > block_tokens ? widest : block_tokens;
  if (!product_fits(most_items,
                    {n(s.max_step_tokens), n(s.unit_query_heads()), n(vector_floats)}) ||
      !product_fits(most_items, {n(s.sequences), n(s.unit.units), n(s.entries) / 32 + 1})) {
    return error(
        StatusCode::unsupported,
        "terse::CacheConfig: one attend call would have more than 2^31 numbers or work items; "
        "lower max_step_tokens, max_sequences, max_tokens or heads");
  }
  return {};
}

/// Whether a calibration, if there is one, serves a policy class of `slots` slots.
template <class Policy>
[[nodiscard]] Status check_calibration(const CalibrationView& calibration,
                                       const CacheConfig& config, int slots) noexcept {
  if (calibration.slots.empty()) return {};
  if (!uses_calibration<Policy> || Policy::projects) {
    return error(StatusCode::invalid_argument,
                 "terse::PolicyConfig: calibration is given for a policy that uses none: no codec "
                 "reads it, or a projector stores latents, which have none",
                 static_cast<std::int64_t>(calibration.slots.size()));
  }
  if (calibration.slots.data() == nullptr) {
    return error(StatusCode::null_pointer, "terse::CalibrationView: slots are null");
  }
  if (calibration.slots.size() != static_cast<std::size_t>(slots)) {
    return error(StatusCode::invalid_argument,
                 "terse::PolicyConfig: calibration must be that of every slot; detail: slots given",
                 static_cast<std::int64_t>(calibration.slots.size()));
  }
  if (calibration.kv_heads != config.num_kv_heads || calibration.head_dim != config.head_dim) {
    return error(StatusCode::invalid_argument,
                 "terse::PolicyConfig: the calibration is that of a model of another number of KV "
                 "heads or another head dimension; detail: its head dimension",
                 calibration.head_dim);
  }
  if (calibration.identity == 0) {
    return error(StatusCode::invalid_argument,
                 "terse::CalibrationView: identity is 0; caches would take each other's bytes");
  }
  for (const SlotCalibration& slot : calibration.slots) {
    if ((UsesCalibration<typename Policy::key_codec> && slot.keys == nullptr) ||
        (UsesCalibration<typename Policy::value_codec> && slot.values == nullptr)) {
      return error(StatusCode::null_pointer, "terse::SlotCalibration: keys or values are null");
    }
  }
  return {};
}

template <Layout L, class Policy>
[[nodiscard]] Status make_class_shape(const CacheConfig& config,
                                      const PolicyConfig<Policy>& policy_config, int slots,
                                      ClassShape* out) noexcept {
  using KeyCodec = typename Policy::key_codec;
  using ValueCodec = typename Policy::value_codec;
  using TailForm = typename Policy::tail_codec;
  const auto positive = [](int value) { return value > 0; };
  if (!positive(config.num_layers) || !positive(config.num_query_heads) ||
      !positive(config.num_kv_heads) || !positive(config.head_dim) ||
      !positive(config.max_sequences) || !positive(config.max_tokens) ||
      !positive(config.max_step_tokens)) {
    return error(StatusCode::invalid_argument,
                 "terse::CacheConfig: layers, heads, head_dim, max_sequences, max_tokens and "
                 "max_step_tokens must be positive");
  }
  if (config.num_query_heads % config.num_kv_heads != 0) {
    return error(StatusCode::invalid_argument,
                 "terse::CacheConfig: num_query_heads must be a multiple of num_kv_heads",
                 config.num_query_heads);
  }
  if (config.num_layers > (1 << 16) || config.num_query_heads > (1 << 12)) {
    return error(StatusCode::unsupported,
                 "terse::CacheConfig: num_layers is limited to 2^16, num_query_heads to 2^12");
  }
  if (config.head_dim > max_head_dim || config.max_step_tokens > (1 << 20) ||
      config.max_tokens > (1 << 30)) {
    return error(StatusCode::unsupported,
                 "terse::CacheConfig: head_dim is limited to 1024, max_step_tokens to 2^20, "
                 "max_tokens to 2^30");
  }
  if (Status s = config.rope.validate(config.head_dim); !s.ok()) return s;
  if (Status s = policy_config.eviction.validate(); !s.ok()) return s;

  ClassShape shape;
  shape.slots = slots;
  shape.sequences = config.max_sequences;
  shape.query_heads = config.num_query_heads;
  shape.kv_heads = config.num_kv_heads;
  shape.head_dim = config.head_dim;
  shape.max_step_tokens = config.max_step_tokens;
  if (Status s = divide_units<typename Policy::projector>(config.num_kv_heads, &shape.unit);
      !s.ok()) {
    return s;
  }
  shape.key_width = shape.value_width = config.head_dim;
  if constexpr (Policy::projects) {
    if (policy_config.factors.size() != static_cast<std::size_t>(slots)) {
      return error(StatusCode::invalid_argument,
                   "terse::PolicyConfig: a policy with a projector needs factors for every slot",
                   static_cast<std::int64_t>(policy_config.factors.size()));
    }
    for (const ProjectionFactors& f : policy_config.factors) {
      if (f.key_up == nullptr || f.value_up == nullptr) {
        return error(StatusCode::null_pointer, "terse::ProjectionFactors: a factor is null");
      }
      if (f.key_rank <= 0 || f.value_rank <= 0 || f.key_rank > max_stream_width ||
          f.value_rank > max_stream_width) {
        return error(StatusCode::invalid_argument,
                     "terse::ProjectionFactors: ranks must be in 1..4096");
      }
      if (f.key_rank != policy_config.factors[0].key_rank ||
          f.value_rank != policy_config.factors[0].value_rank) {
        return error(StatusCode::invalid_argument,
                     "terse::ProjectionFactors: the slots of one policy class must have equal "
                     "ranks, because their pages come from one pool; use a Schedule");
      }
    }
    shape.key_width = policy_config.factors[0].key_rank;
    shape.value_width = policy_config.factors[0].value_rank;
  } else if (!policy_config.factors.empty()) {
    return error(StatusCode::invalid_argument,
                 "terse::PolicyConfig: factors are given for a policy without a projector",
                 static_cast<std::int64_t>(policy_config.factors.size()));
  }
  if (Status s = check_calibration<Policy>(policy_config.calibration, config, slots); !s.ok()) {
    return s;
  }
  if (Status s = supports_width<KeyCodec>(Side::key, shape.key_width); !s.ok()) return s;
  if (Status s = supports_width<ValueCodec>(Side::value, shape.value_width); !s.ok()) return s;
  if constexpr (Policy::reindex == Reindex::cache_index) {
    if (config.rope.rotary_dim == 0) {
      return error(StatusCode::invalid_argument,
                   "terse::CacheConfig: cache-index positions rotate queries; set rope");
    }
  }

  shape.tail = policy_config.tail.value_or(Policy::tail);
  if (Status s = shape.tail.validate(); !s.ok()) return s;
  shape.open = CanEncodeToken<KeyCodec> && CanEncodeToken<ValueCodec> && shape.tail.min_tokens == 0;
  if (!shape.open) {
    if (Status s = supports_width<TailForm>(Side::key, shape.key_width); !s.ok()) return s;
    if (Status s = supports_width<TailForm>(Side::value, shape.value_width); !s.ok()) return s;
  }
  shape.encodes_ahead = policy_config.encodes_ahead;
  if (shape.encodes_ahead && (shape.open || shape.most_blocks_ahead() == 0)) {
    return error(StatusCode::invalid_argument,
                 "terse::PolicyConfig: encodes_ahead is set, but no block is complete before it is "
                 "due; give the policy a longer tail");
  }

  const bool per_head = L::head_paging == HeadPaging::per_head;
  shape.rows = per_head ? shape.unit.units : 1;
  shape.units_per_row = per_head ? 1 : shape.unit.units;
  // One block more than the tokens need: with a tail, a truncated sequence continues in a new one.
  shape.entries = ceil_div(config.max_tokens, block_tokens) + 1;
  shape.ring_blocks =
      shape.open ? 0
                 : static_cast<int>(ceil_div(shape.tail.capacity_tokens(config.max_step_tokens),
                                             std::int64_t{block_tokens}));
  shape.key_record = KeyCodec::record(Side::key, shape.key_width);
  shape.value_record = ValueCodec::record(Side::value, shape.value_width);
  shape.unit_bytes = shape.value_offset(shape.unit.value_streams);
  shape.page_bytes = shape.unit_bytes * static_cast<std::size_t>(shape.units_per_row);
  shape.tail_key_bytes = TailForm::record(Side::key, shape.key_width).bytes;
  shape.tail_value_bytes = TailForm::record(Side::value, shape.value_width).bytes;
  shape.tail_block_bytes =
      shape.encodes_ahead ? round_up(shape.ahead_mark_offset(Side::value, shape.unit.value_streams),
                                     record_align_bytes)
                          : shape.tail_tokens_bytes();
  shape.sink_bytes =
      shape.tail.sink_tokens == 0
          ? 0
          : round_up(shape.sink_offset(Side::value, shape.unit.value_streams), record_align_bytes);
  shape.tail_stride_bytes =
      shape.tail_block_bytes * static_cast<std::size_t>(shape.ring_blocks) + shape.sink_bytes;
  if (Status s = check_sizes<Policy>(shape); !s.ok()) return s;
  const std::int64_t all_pages =
      std::int64_t{shape.slots} * shape.sequences * shape.rows * shape.entries;
  if (policy_config.num_pages < 0 || policy_config.num_pages > 0x7fffffff) {
    return error(StatusCode::invalid_argument,
                 "terse::PolicyConfig: num_pages must be in 0..2^31-1", policy_config.num_pages);
  }
  if (!L::paged && (policy_config.num_pages > 0 || policy_config.borrows_pages)) {
    return error(StatusCode::invalid_argument,
                 "terse::PolicyConfig: num_pages or borrows_pages is given for a layout without "
                 "pages",
                 policy_config.num_pages);
  }
  shape.num_pages = policy_config.num_pages > 0 ? policy_config.num_pages : all_pages;
  if (shape.num_pages > 0x7fffffff) {
    return error(StatusCode::unsupported,
                 "terse::CacheConfig: more than 2^31 - 1 blocks; set num_pages, or lower "
                 "max_sequences, max_tokens, layers or heads",
                 shape.num_pages);
  }
  if (!product_fits(1ull << 48, {static_cast<std::uint64_t>(shape.num_pages), shape.page_bytes})) {
    return error(StatusCode::unsupported,
                 "terse::CacheConfig: the pages would exceed 2^48 bytes; set num_pages, or lower "
                 "max_sequences, max_tokens, layers or heads",
                 shape.num_pages);
  }
  *out = shape;
  return {};
}

}  // namespace detail
}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
