/// Appending of one slot: basis, tail or code, sealing.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "terse/cache/class_store.hpp"
#include "terse/cache/grid.hpp"
#include "terse/config.hpp"
#include "terse/core/head_rows.hpp"
#include "terse/core/scalar.hpp"
#include "terse/core/span.hpp"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {

/// Keys and values of a step's tokens, rows in the order of the step's parts.
///
/// Without a projector keys and values are `[row, kv_head, head_dim]`, keys after RoPE unless
/// `rope` is given. With one they are latents `[row, group, rank]`, groups of the projector in the
/// order of the heads, keys before RoPE. Magnitudes above 65504 are stored as 65504; NaN and
/// infinities are refused.
struct AppendInputs {
  HeadRows keys{};
  HeadRows values{};
  HeadRows gate_logits{};  ///< `[row, kv_head]` (one channel); only for Signal::gate_logit
  /// If given, keys come before RoPE: they are turned to their positions as CacheConfig::rope says,
  /// in fp32, by this table, and then stored. Device memory for a cache on the device. Refused
  /// (invalid_argument): with a projector, without CacheConfig::rope, and where it ends before a
  /// position of the step; misaligned.
  RopeTable rope{};
  /// `[row]` or empty: row i of the step is row `source_rows[i]` of `keys` and `values`, which have
  /// `num_source_rows` rows. So they may lie in an engine's pages (import_plain.hpp). Other numbers
  /// are refused (invalid_argument). Gate logits stay rows of the step. For a cache on the device
  /// they are device memory, to stay as long as keys and values.
  Span<const std::int64_t> source_rows{};
  std::int64_t num_source_rows = 0;

  /// Row of keys and values that is row `row` of the step.
  [[nodiscard]] TERSE_HOST_DEVICE std::int64_t source_row(std::int64_t row) const noexcept {
    return source_rows.empty() ? row : source_rows[static_cast<std::size_t>(row)];
  }
};

namespace detail {

/// Finds NaN or infinity in as many rows of an input as the step has: those that `inputs` names.
[[nodiscard]] inline bool all_finite(const HeadRows& in, const AppendInputs& inputs,
                                     std::int64_t rows, int heads, int channels) noexcept {
  constexpr int chunk = 64;
  float x[chunk];
  for (std::int64_t i = 0; i < rows; ++i) {
    const std::int64_t row = inputs.source_row(i);
    for (int h = 0; h < heads; ++h) {
      for (int c = 0; c < channels; c += chunk) {
        const int n = channels - c < chunk ? channels - c : chunk;
        HeadRows part = in;
        part.data = static_cast<const std::byte*>(in.data) + c * scalar_bytes(in.scalar);
        part.load(row, h, n, x);
        std::uint32_t bad = 0;
        for (int k = 0; k < n; ++k) bad |= static_cast<std::uint32_t>(!is_finite(x[k]));
        if (bad != 0) return false;
      }
    }
  }
  return true;
}

/// Which codes of a stream a block of the tail holds (ClassShape::ahead_mark_offset).
[[nodiscard]] inline std::uint32_t ahead_mark(const ClassShape& shape, const std::byte* tail,
                                              Side side, int stream) noexcept {
  std::uint32_t mark;
  std::memcpy(&mark, tail + shape.ahead_mark_offset(side, stream), sizeof mark);
  return mark;
}
inline void set_ahead_mark(const ClassShape& shape, std::byte* tail, Side side, int stream,
                           std::uint32_t mark) noexcept {
  std::memcpy(tail + shape.ahead_mark_offset(side, stream), &mark, sizeof mark);
}

/// Limits a vector's numbers to a magnitude.
inline void limit(float* x, int channels, float most) noexcept {
  for (int c = 0; c < channels; ++c) x[c] = clamp(x[c], -most, most);
}

/// Writes one vector: to the open block, or to the tail and the sinks, in the codec's basis.
template <class CodecPart, class Store>
void write_vector(Store& store, const typename Store::Ref& r, Side side, int sequence, int unit,
                  int stream, int entry, std::int64_t position, float* x) noexcept {
  const ClassShape& shape = store.shape;
  const CodecContext context = r.context(side, unit, stream);
  limit(x, context.width, f16_max);
  to_basis<CodecPart>(context, x);
  if (!has_f16_tail<typename Store::Ref::policy> && !shape.open) limit(x, context.width, tail_max);
  const int token = static_cast<int>((position - store.base.grids[sequence].origin) % block_tokens);
  if (shape.open) {
    if constexpr (CanEncodeToken<CodecPart>) {
      std::byte* block = r.block(sequence, unit, entry) + shape.code_offset(side, stream);
      CodecPart::encode_token(context, x, token, block);
    }
  } else {
    std::byte* tail = r.tail_block(sequence, unit, position);
    Store::Ref::policy::tail_codec::encode_token(context, x, token,
                                                 tail + shape.tail_offset(side, stream));
    if (shape.encodes_ahead) set_ahead_mark(shape, tail, side, stream, 0);
  }
  if (position < shape.tail.sink_tokens) {
    Identity::store(context, x, sink_block_tokens, static_cast<int>(position),
                    r.sink_block(sequence, unit) + shape.sink_offset(side, stream));
  }
}

/// Encodes a stream of the tail's block at `first` to `out`.
template <class CodecPart, class Store>
void encode_tail(Store& store, const typename Store::Ref& r, Side side, int sequence, int unit,
                 int stream, std::int64_t first, std::byte* out) noexcept {
  const ClassShape& shape = store.shape;
  const CodecContext context = r.context(side, unit, stream);
  const std::byte* tail = r.tail_block(sequence, unit, first) + shape.tail_offset(side, stream);
  for (int t = 0; t < block_tokens; ++t) {
    for (int c = 0; c < context.width; ++c) {
      store.vectors[t * context.width + c] =
          Store::Ref::policy::tail_codec::decode(context, tail, t, c);
    }
  }
  encode_block<CodecPart>(context, store.vectors, out);
}

/// Seals a stream of the tail's block at `first` into the page of `entry`.
template <class CodecPart, class Store>
void seal_stream(Store& store, const typename Store::Ref& r, Side side, int sequence, int unit,
                 int stream, int entry, std::int64_t first) noexcept {
  const ClassShape& shape = store.shape;
  std::byte* out = r.block(sequence, unit, entry) + shape.code_offset(side, stream);
  if (shape.encodes_ahead) {
    const std::byte* tail = r.tail_block(sequence, unit, first);
    if (ahead_mark(shape, tail, side, stream) == ClassShape::all_ahead) {
      std::memcpy(out, tail + shape.ahead_offset(side, stream), shape.record(side).bytes);
      return;
    }
  }
  encode_tail<CodecPart>(store, r, side, sequence, unit, stream, first, out);
}

/// Makes the `tokens` tokens behind `length` live in all units of a slot.
template <class Store>
void mark_appended(const Store& store, const typename Store::Ref& r, int sequence,
                   std::int64_t length, int tokens) noexcept {
  const std::int64_t origin = store.base.grids[sequence].origin;
  const std::int64_t end = length + tokens;
  r.was_appended(sequence) = 1;
  for (int u = 0; u < store.shape.unit.units; ++u) {
    // The newest entries of a row are the grid's newest blocks, one each.
    int entry = r.entry_count(sequence, r.row_of_unit(u)) - 1;
    for (std::int64_t first = origin + (end - 1 - origin) / block_tokens * block_tokens;
         first + block_tokens > length; first -= block_tokens, --entry) {
      r.live_mask(sequence, u, entry) |=
          r.before(sequence, u, entry, end) & ~r.before(sequence, u, entry, length);
    }
  }
}

/// Appends `tokens` tokens of one sequence, rows from `row0` of the inputs, at the committed
/// length.
template <class Store>
void append_sequence(Store& store, const typename Store::Ref& r, int sequence, int tokens,
                     std::int64_t row0, const AppendInputs& in) noexcept {
  using Policy = typename Store::Ref::policy;
  using KeyCodec = typename Policy::key_codec;
  using ValueCodec = typename Policy::value_codec;
  const ClassShape& shape = store.shape;
  const GridRecord& grid = store.base.grids[sequence];
  const std::int64_t length = r.sequences[sequence].length_tokens;
  const std::int64_t end = length + tokens;
  mark_appended(store, r, sequence, length, tokens);
  for (int u = 0; u < shape.unit.units; ++u) {
    const int row = r.row_of_unit(u);
    const int count = r.entry_count(sequence, row);
    const std::int64_t last_block = (end - 1 - grid.origin) / block_tokens;
    for (int i = 0; i < tokens; ++i) {
      const std::int64_t position = length + i;
      const std::int64_t grid_block = (position - grid.origin) / block_tokens;
      const int entry = count - 1 - static_cast<int>(last_block - grid_block);
      const std::int64_t source = in.source_row(row0 + i);
      float* x = store.vectors;
      for (int s = 0; s < shape.unit.key_streams; ++s) {
        in.keys.load(source, u * shape.unit.key_streams + s, shape.key_width, x);
        if (in.rope.turns != nullptr) {
          limit(x, shape.key_width, f16_max);
          turn(r.rope, in.rope.turns + position * r.rope.rotary_dim, x);
        }
        write_vector<KeyCodec>(store, r, Side::key, sequence, u, s, entry, position, x);
      }
      for (int s = 0; s < shape.unit.value_streams; ++s) {
        in.values.load(source, u * shape.unit.value_streams + s, shape.value_width, x);
        write_vector<ValueCodec>(store, r, Side::value, sequence, u, s, entry, position, x);
      }
      if constexpr (Store::has_state) {
        const auto token = static_cast<unsigned>((position - grid.origin) % block_tokens);
        auto& state = r.token_states[r.unit_entry(sequence, u, entry) * block_tokens + token];
        state = {};
        if constexpr (Policy::signal == Signal::gate_logit) {
          for (int h = 0; h < shape.unit.heads_per_unit; ++h) {
            float logit = 0.0f;
            in.gate_logits.load(row0 + i, u * shape.unit.heads_per_unit + h, 1, &logit);
            Policy::evictor::admit(state, logit);
          }
        }
      }
    }
    if (shape.open) continue;
    const std::int64_t sealed_end = sealed_end_of(shape, grid, end);
    for (std::int64_t first = grid.sealed_end; first < sealed_end; first += block_tokens) {
      const int entry =
          count - 1 - static_cast<int>(last_block - (first - grid.origin) / block_tokens);
      for (int s = 0; s < shape.unit.key_streams; ++s) {
        seal_stream<KeyCodec>(store, r, Side::key, sequence, u, s, entry, first);
      }
      for (int s = 0; s < shape.unit.value_streams; ++s) {
        seal_stream<ValueCodec>(store, r, Side::value, sequence, u, s, entry, first);
      }
    }
  }
}

/// What is wrong with the source rows of `rows` rows, if there are any, apart from their numbers.
[[nodiscard]] inline Status check_source_form(const AppendInputs& in, std::int64_t rows) noexcept {
  if (in.num_source_rows < 0) {
    return error(StatusCode::invalid_argument,
                 "terse::KVCache::append: num_source_rows is negative", in.num_source_rows);
  }
  if (in.source_rows.empty() != (in.num_source_rows == 0)) {
    return error(StatusCode::invalid_argument,
                 "terse::KVCache::append: source_rows and num_source_rows go together, both or "
                 "neither; detail: num_source_rows",
                 in.num_source_rows);
  }
  if (in.source_rows.empty()) return {};
  if (in.source_rows.data() == nullptr) {
    return error(StatusCode::null_pointer, "terse::KVCache::append: source_rows are null");
  }
  if (static_cast<std::int64_t>(in.source_rows.size()) < rows) {
    return error(StatusCode::buffer_too_small,
                 "terse::KVCache::append: fewer source_rows than the step has rows; detail: rows "
                 "of the step",
                 rows);
  }
  if (in.keys.row_stride < 1 || in.values.row_stride < 1) {
    return error(StatusCode::invalid_argument,
                 "terse::KVCache::append: with source_rows row_stride must be positive");
  }
  return {};
}

/// Checks the source rows of `rows` rows.
[[nodiscard]] inline Status check_source_rows(const AppendInputs& in, std::int64_t rows) noexcept {
  if (Status s = check_source_form(in, rows); !s.ok()) return s;
  if (in.source_rows.empty()) return {};
  for (std::int64_t i = 0; i < rows; ++i) {
    const std::int64_t source = in.source_row(i);
    if (source < 0 || source >= in.num_source_rows) {
      return error(StatusCode::invalid_argument,
                   "terse::KVCache::append: a source row is not in 0..num_source_rows-1; detail: "
                   "the row of the step",
                   i);
    }
  }
  return {};
}

/// Whether strides of an input leave room for a vector. Source rows may lie closer than that: they
/// are units in which engines' pages count.
[[nodiscard]] inline bool has_input_strides(const HeadRows& in, bool has_source_rows,
                                            std::int64_t rows, int heads, int channels) noexcept {
  if (heads > 1 && in.head_stride < channels) return false;
  return has_source_rows || rows <= 1 || in.row_stride >= channels;
}

/// Checks one input of an append: `rows` rows of `heads` vectors, those that `inputs` names.
[[nodiscard]] inline Status check_append_input(const HeadRows& in, const AppendInputs& inputs,
                                               std::int64_t rows, int heads,
                                               int channels) noexcept {
  if (in.data == nullptr) {
    return error(StatusCode::null_pointer, "terse::KVCache::append: an input is null");
  }
  if (!has_input_strides(in, !inputs.source_rows.empty(), rows, heads, channels)) {
    return error(StatusCode::invalid_argument,
                 "terse::KVCache::append: a stride is smaller than a vector");
  }
  if (!all_finite(in, inputs, rows, heads, channels)) {
    return error(StatusCode::not_finite, "terse::KVCache::append: an input holds NaN or infinity");
  }
  return {};
}

/// Checks a table of turns for keys that are stored up to position `end`.
template <class Ref>
[[nodiscard]] Status check_rope_table(const Ref& r, const RopeTable& table,
                                      std::int64_t end) noexcept {
  if (table.turns == nullptr) return {};
  if (Ref::policy::projects) {
    return error(StatusCode::invalid_argument,
                 "terse::KVCache::append: latents of keys are stored before RoPE; give no table");
  }
  if (r.rope.rotary_dim == 0) {
    return error(StatusCode::invalid_argument,
                 "terse::KVCache::append: a table of turns needs CacheConfig::rope");
  }
  if (reinterpret_cast<std::uintptr_t>(table.turns) % 8 != 0) {
    return error(StatusCode::misaligned,
                 "terse::KVCache::append: the table of turns must be 8-byte aligned");
  }
  if (table.positions < end) {
    return error(StatusCode::invalid_argument,
                 "terse::KVCache::append: the table of turns ends before the step's last position; "
                 "detail: positions needed",
                 end);
  }
  return {};
}

/// Appends the tokens of all parts of a step to one slot, or nothing.
template <class Store>
Status append_to_slot(Store& store, int slot, Span<const StepPart> parts,
                      const AppendInputs& in) noexcept {
  const ClassShape& shape = store.shape;
  std::int64_t rows = 0;
  for (const StepPart& part : parts) rows += part.tokens;
  Status status = check_source_rows(in, rows);
  if (status.ok()) {
    status = check_append_input(in.keys, in, rows, shape.unit.units * shape.unit.key_streams,
                                shape.key_width);
  }
  if (status.ok()) {
    status = check_append_input(in.values, in, rows, shape.unit.units * shape.unit.value_streams,
                                shape.value_width);
  }
  if constexpr (Store::Ref::policy::signal == Signal::gate_logit) {
    if (status.ok()) status = check_append_input(in.gate_logits, {}, rows, shape.kv_heads, 1);
  }
  const auto r = store.ref(slot);
  for (const StepPart& part : parts) {
    if (!status.ok()) return status;
    const std::int64_t end = r.sequences[part.sequence.index].length_tokens + part.tokens;
    status = check_rope_table(r, in.rope, end);
  }
  if (!status.ok()) return status;
  std::int64_t row = 0;
  for (const StepPart& part : parts) {
    append_sequence(store, r, part.sequence.index, part.tokens, row, in);
    row += part.tokens;
  }
  return {};
}

}  // namespace detail
}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
