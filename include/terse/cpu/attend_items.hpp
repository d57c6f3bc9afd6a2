/// One work item of attention: some entries of a unit, read by all rows of a part.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "terse/cache/attention.hpp"
#include "terse/config.hpp"
#include "terse/cpu/attend_call.hpp"
#include "terse/cpu/basis.hpp"
#include "terse/cpu/block_reader.hpp"
#include "terse/cpu/latent_keys.hpp"
#include "terse/cpu/plane_blocks.hpp"
#include "terse/policy/tail.hpp"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {
namespace cpu {

namespace detail {

/// Index of a query vector inside a unit: KV head, then row, then member of the query group.
[[nodiscard]] inline int vector_index(int head_in_unit, int row, int member, int rows,
                                      int group) noexcept {
  return (head_in_unit * rows + row) * group + member;
}

/// Loads, turns, scales and rotates the queries of a unit into the codec's basis.
template <class Ref>
void load_queries(const AttendCall<Ref>& call, std::size_t part, int unit, std::int64_t row0,
                  const PartShape& p, const ItemScratch& s) noexcept {
  using Policy = typename Ref::policy;
  using KeyCodec = typename Policy::key_codec;
  const ClassShape& shape = call.r.shape;
  const int sequence = call.in.parts[part].sequence.index;
  const int group = shape.query_heads / shape.kv_heads;
  for (int row = 0; row < p.rows; ++row) {
    const std::int64_t position = call.r.visible_tokens(sequence) - p.rows + row;
    const std::int64_t shift = prefix_shift(call.r, sequence, unit, position);
    if (shift != 0) fill_turn(call.r.rope, static_cast<double>(shift), s.vector);
    for (int h = 0; h < shape.unit.heads_per_unit; ++h) {
      for (int g = 0; g < group; ++g) {
        const int head = (unit * shape.unit.heads_per_unit + h) * group + g;
        const int v = vector_index(h, row, g, p.rows, group);
        for (int variant = 0; variant < 2 && s.queries[variant] != nullptr; ++variant) {
          float* x = s.queries[variant] + std::ptrdiff_t{v} * shape.head_dim;
          call.in.queries.load(row0 + row, head, shape.head_dim, x);
          if (variant == 1 && shift != 0) turn(call.r.rope, s.vector, x);
          for (int c = 0; c < shape.head_dim; ++c) x[c] *= call.scale;
          if constexpr (!Policy::projects) {
            const CodecContext context =
                call.r.context(Side::key, unit, h / shape.unit.key_heads_per_stream);
            if constexpr (HasQueryOffset<KeyCodec>) {
              s.offsets[variant][v] = KeyCodec::query_offset(context, x);
            }
            turn_query<KeyCodec>(call.table, context, x);
          }
        }
      }
    }
  }
  if constexpr (!Policy::projects) {
    for (int variant = 0; variant < 2 && s.queries[variant] != nullptr; ++variant) {
      BlockReader<KeyCodec>::prepare(call.table, s.queries[variant], p.vectors, shape.key_width,
                                     s.prepared[variant]);
    }
  }
}

enum class Source { encoded, tail, sinks };

/// Where the keys and values of an entry lie for one of the three sources.
template <class Ref>
[[nodiscard]] const std::byte* source_block(const Ref& r, Source source, int sequence, int unit,
                                            int entry) noexcept {
  switch (source) {
    case Source::encoded:
      return r.block(sequence, unit, entry);
    case Source::tail:
      return r.tail_block(sequence, unit, r.first_position(sequence, unit, entry));
    default:
      return r.sink_block(sequence, unit);
  }
}

[[nodiscard]] constexpr int source_tokens(Source source) noexcept {
  return source == Source::sinks ? sink_block_tokens : block_tokens;
}

/// Byte offset of a stream in a block of one of the three sources.
[[nodiscard]] inline std::size_t source_offset(const ClassShape& shape, Source source, Side side,
                                               int stream) noexcept {
  switch (source) {
    case Source::encoded:
      return shape.code_offset(side, stream);
    case Source::tail:
      return shape.tail_offset(side, stream);
    default:
      return shape.sink_offset(side, stream);
  }
}

/// Whether a source holds plain 16-bit numbers.
template <class Ref>
[[nodiscard]] constexpr bool is_f16(Source source) noexcept {
  return source == Source::sinks || (source == Source::tail && has_f16_tail<typename Ref::policy>);
}

/// Logits against keys that are rebuilt from latents, head by head.
template <class Ref>
void latent_scores(const AttendCall<Ref>& call, Source source, int sequence, int unit, int entry,
                   int variant, const std::byte* block, const PartShape& p,
                   const ItemScratch& s) noexcept {
  using KeyCodec = typename Ref::policy::key_codec;
  using TailForm = typename Ref::policy::tail_codec;
  const ClassShape& shape = call.r.shape;
  const int tokens = source_tokens(source);
  const int per_head = p.vectors / shape.unit.heads_per_unit;
  block_angles(call.r, sequence, unit, entry, source == Source::sinks, s.angles);
  for (int h = 0; h < shape.unit.heads_per_unit; ++h) {
    const int stream = h / shape.unit.key_heads_per_stream;
    const CodecContext context = call.r.context(Side::key, unit, stream);
    const float* up = key_up(call.r, unit * shape.unit.heads_per_unit + h);
    const std::byte* latents = block + source_offset(shape, source, Side::key, stream);
    if (!HasBasis<KeyCodec> && is_f16<Ref>(source)) {
      call.table.scores_f16(up, shape.head_dim, shape.key_width,
                            reinterpret_cast<const F16*>(latents), tokens, s.rebuilt, nullptr);
    } else if (!HasBasis<KeyCodec> && PlainCodec<KeyCodec> && source == Source::encoded) {
      BlockReader<KeyCodec>::scores(call.table, context, latents, up, nullptr, shape.head_dim,
                                    s.rebuilt, nullptr, nullptr);
    } else {
      if (h % shape.unit.key_heads_per_stream == 0) {
        if (source == Source::encoded) {
          BlockReader<KeyCodec>::decode(call.table, context, latents, s.keys);
        } else if (source == Source::tail) {
          BlockReader<TailForm>::decode(call.table, context, latents, s.keys);
        } else {
          decode_sink_keys(context, latents, s.keys);
        }
        leave_basis<KeyCodec>(call.table, context, tokens, s.keys, s.vector);
      }
      call.table.scores_f32(up, shape.head_dim, shape.key_width, s.keys, block_tokens, s.rebuilt);
    }
    rotate_rebuilt(call.r.rope, tokens, s.angles.block, s.rebuilt);
    call.table.scores_f32(s.queries[variant] + std::ptrdiff_t{h} * per_head * shape.head_dim,
                          per_head, shape.head_dim, s.rebuilt, block_tokens,
                          s.scores + std::ptrdiff_t{h} * per_head * block_tokens);
  }
}

/// Adds what products with stored keys lack to logits, and caps them.
template <class Ref>
void finish_scores(const AttendCall<Ref>& call, Source source, [[maybe_unused]] int variant,
                   const PartShape& p, const ItemScratch& s) noexcept {
  using Policy = typename Ref::policy;
  const int tokens = source_tokens(source);
  if constexpr (HasQueryOffset<typename Policy::key_codec> && !Policy::projects) {
    for (int v = 0; v < p.vectors; ++v) {
      float* scores = s.scores + std::ptrdiff_t{v} * block_tokens;
      for (int t = 0; t < tokens; ++t) scores[t] += s.offsets[variant][v];
    }
  }
  if (call.params.logit_soft_cap > 0) {
    for (int v = 0; v < p.vectors; ++v) {
      call.table.soft_cap(s.scores + std::ptrdiff_t{v} * block_tokens, tokens,
                          call.params.logit_soft_cap);
    }
  }
}

/// Logits of all query vectors of a unit against one block.
template <class Ref>
void block_scores(const AttendCall<Ref>& call, Source source, int sequence, int unit, int entry,
                  int variant, const std::byte* block, const std::byte* next, const PartShape& p,
                  const ItemScratch& s) noexcept {
  using Policy = typename Ref::policy;
  using KeyCodec = typename Policy::key_codec;
  const ClassShape& shape = call.r.shape;
  const int tokens = source_tokens(source);
  if constexpr (Policy::projects) {
    if (source == Source::encoded) {
      const auto streams = static_cast<std::uint64_t>(shape.unit.key_streams);
      const std::uint64_t stored = streams * whole_bytes<KeyCodec>(Side::key, shape.key_width);
      s.bytes->keys_stored += stored;
      s.bytes->keys += stored;
    }
    latent_scores(call, source, sequence, unit, entry, variant, block, p, s);
  } else if (source == Source::encoded) {
    const std::uint64_t stored = whole_bytes<KeyCodec>(Side::key, shape.key_width);
    s.bytes->keys_stored += stored;
    if constexpr (PlaneCodec<KeyCodec>) {
      if (call.params.planes.rule != PlaneRule::everything) {
        s.bytes->keys +=
            decode_keys<KeyCodec>(call.r.context(Side::key, unit, 0), block, s.queries[variant],
                                  p.vectors, call.scale, call.params.planes, s.vector, s.keys);
        call.table.scores_f32(s.queries[variant], p.vectors, shape.key_width, s.keys, block_tokens,
                              s.scores);
        return finish_scores(call, source, variant, p, s);
      }
    }
    s.bytes->keys += stored;
    BlockReader<KeyCodec>::scores(call.table, call.r.context(Side::key, unit, 0), block,
                                  s.queries[variant], s.prepared[variant], p.vectors, s.scores,
                                  s.keys, next);
  } else if (is_f16<Ref>(source)) {
    call.table.scores_f16(s.queries[variant], p.vectors, shape.key_width,
                          reinterpret_cast<const F16*>(block), tokens, s.scores, next);
  } else {
    BlockReader<typename Policy::tail_codec>::decode(call.table, call.r.context(Side::key, unit, 0),
                                                     block, s.keys);
    call.table.scores_f32(s.queries[variant], p.vectors, shape.key_width, s.keys, block_tokens,
                          s.scores);
  }
  finish_scores(call, source, variant, p, s);
}

/// Where the next entry's keys and values will be read, as a hint.
struct NextBlock {
  const std::byte* block = nullptr;
  bool encoded = false;
};

template <class Ref>
[[nodiscard]] NextBlock next_block(const Ref& r, int sequence, int unit, int entry,
                                   int end) noexcept {
  if (entry + 1 >= end) return {};
  if (r.page(sequence, r.row_of_unit(unit), entry + 1) != no_page) {
    return {r.block(sequence, unit, entry + 1), true};
  }
  const std::int64_t first = r.first_position(sequence, unit, entry + 1);
  if (r.shape.open || first < r.grids[sequence].exact_begin) return {};
  return {r.tail_block(sequence, unit, first), false};
}

/// Decodes the values of a block as deep as the call's rule and `probabilities` ask. Gives the
/// bytes read.
template <PlaneCodec C, class Ref>
[[nodiscard]] std::uint64_t decode_deep_values(const AttendCall<Ref>& call,
                                               const CodecContext& context, const std::byte* block,
                                               const float* probabilities,
                                               std::ptrdiff_t first_vector, int vectors,
                                               std::int64_t tokens, const ItemScratch& s) noexcept {
  const PlaneReading& reading = call.params.planes;
  if constexpr (ExponentPlanes<C> && !Ref::policy::projects) {
    if (reading.rule == PlaneRule::exponents) {
      return decode_aligned_values<C>(context, block, probabilities, s.states, vectors, s.aligned,
                                      reading.margin, s.values);
    }
  }
  return decode_values<C>(context, block, probabilities, s.states + first_vector, vectors, tokens,
                          reading, s.values);
}

/// accumulators += probabilities * values of one block. `tokens`: of the sequence.
template <class Ref>
void block_values(const AttendCall<Ref>& call, Source source, int unit, const std::byte* block,
                  std::int64_t tokens, const NextBlock& next, const PartShape& p,
                  const ItemScratch& s) noexcept {
  using ValueCodec = typename Ref::policy::value_codec;
  const ClassShape& shape = call.r.shape;
  const int per_stream = p.vectors / shape.unit.value_streams;
  for (int stream = 0; stream < shape.unit.value_streams; ++stream) {
    const std::ptrdiff_t first = std::ptrdiff_t{stream} * per_stream;
    const float* probabilities = s.scores + first * block_tokens;
    const std::byte* hint =
        next.block == nullptr
            ? nullptr
            : next.block + source_offset(shape, next.encoded ? Source::encoded : Source::tail,
                                         Side::value, stream);
    float* accumulators = s.accumulators + first * shape.value_width;
    if (source == Source::encoded) {
      const CodecContext context = call.r.context(Side::value, unit, stream);
      const std::uint64_t stored = whole_bytes<ValueCodec>(Side::value, shape.value_width);
      s.bytes->values_stored += stored;
      if constexpr (PlaneCodec<ValueCodec>) {
        if (call.params.planes.rule != PlaneRule::everything) {
          s.bytes->values +=
              decode_deep_values<ValueCodec>(call, context, block + shape.value_offset(stream),
                                             probabilities, first, per_stream, tokens, s);
          call.table.values_f32(probabilities, per_stream, shape.value_width, s.values,
                                block_tokens, accumulators);
          continue;
        }
      }
      s.bytes->values += stored;
      BlockReader<ValueCodec>::values(call.table, context, block + shape.value_offset(stream),
                                      probabilities, per_stream, accumulators, s.values, hint);
    } else if (is_f16<Ref>(source)) {
      const std::byte* values = block + source_offset(shape, source, Side::value, stream);
      call.table.values_f16(probabilities, per_stream, shape.value_width,
                            reinterpret_cast<const F16*>(values), source_tokens(source),
                            accumulators, hint);
    } else {
      BlockReader<typename Ref::policy::tail_codec>::values(
          call.table, call.r.context(Side::value, unit, stream),
          block + shape.tail_offset(Side::value, stream), probabilities, per_stream, accumulators,
          s.values, hint);
    }
  }
}

/// Calls `visit(source, entry, variant, select)` for everything the rows of a part read in the
/// entries [begin, end) of a unit; `select(row)` gives the tokens of the visited block.
template <class Ref, class Visit>
void visit_blocks(const AttendCall<Ref>& call, int sequence, int unit, int begin, int end,
                  const PartShape& p, const ItemScratch& s, Visit&& visit) noexcept {
  const Ref& r = call.r;
  const std::int64_t newest = r.visible_tokens(sequence) - 1;
  const std::int64_t prefix = prefix_end(r);
  for (int e = begin; e < end; ++e) {
    if (r.first_position(sequence, unit, e) > newest) break;
    std::uint64_t decoded = 0, exact = 0, sinks = 0;
    for (int row = 0; row < p.rows; ++row) {
      RowMask& m = s.masks[row];
      m = row_mask(r, sequence, unit, e, newest - p.rows + 1 + row, call.params);
      decoded |= m.decoded;
      exact |= m.exact;
      sinks |= m.sinks;
    }
    // With cache-index positions a block may be read twice, with disjoint masks.
    const std::uint64_t before_prefix = prefix > 0 ? r.before(sequence, unit, e, prefix) : 0;
    const std::uint64_t sink_prefix =
        prefix >= block_tokens ? ~0ull : (1ull << prefix) - 1;  // bit = position there
    for (int variant = 0; variant < 2; ++variant) {
      const std::uint64_t part = variant == 1 ? before_prefix : ~before_prefix;
      const std::uint64_t sink_part = variant == 1 ? sink_prefix : ~sink_prefix;
      if ((decoded & part) != 0) {
        visit(Source::encoded, e, variant, [&](int row) { return s.masks[row].decoded & part; });
      }
      if ((exact & part) != 0) {
        visit(Source::tail, e, variant, [&](int row) { return s.masks[row].exact & part; });
      }
      if ((sinks & sink_part) != 0) {
        visit(Source::sinks, e, variant, [&](int row) { return s.masks[row].sinks & sink_part; });
      }
    }
  }
}

/// Whether it depends on all logits how deep values are read.
template <class Ref>
inline constexpr bool may_take_two_passes =
    ExponentPlanes<typename Ref::policy::value_codec> && !Ref::policy::projects;
template <class Ref>
[[nodiscard]] bool takes_two_passes(const PlaneReading& reading) noexcept {
  return may_take_two_passes<Ref> && reading.rule == PlaneRule::exponents;
}

/// The first of two passes over a unit's entries, up to `end`.
template <class Ref>
void align_values(const AttendCall<Ref>& call, int sequence, int unit, int end, const PartShape& p,
                  const ItemScratch& s) noexcept {
  using ValueCodec = typename Ref::policy::value_codec;
  const ClassShape& shape = call.r.shape;
  const CodecContext context = call.r.context(Side::value, unit, 0);
  const int group = shape.query_heads / shape.kv_heads;
  const auto values = [&](int entry) {
    return call.r.block(sequence, unit, entry) + shape.value_offset(0);
  };
  std::fill_n(s.aligned.likely, std::ptrdiff_t{p.vectors} * estimate_tokens, LikelyToken{});
  std::fill_n(s.aligned.states, p.vectors, SoftmaxState{});
  std::fill_n(s.aligned.exponents, context.width, std::uint8_t{0});
  visit_blocks(call, sequence, unit, 0, end, p, s,
               [&](Source source, int e, int variant, auto&& select) {
                 block_scores(call, source, sequence, unit, e, variant,
                              source_block(call.r, source, sequence, unit, e), nullptr, p, s);
                 const bool is_encoded = source == Source::encoded;
                 std::uint64_t read = 0;
                 for (int v = 0; v < p.vectors; ++v) {
                   const std::uint64_t mask = select(v / group % p.rows);
                   take_logits(call.table, s.aligned, v, is_encoded ? e : -1, mask,
                               s.scores + std::ptrdiff_t{v} * block_tokens);
                   read |= mask;
                 }
                 if (is_encoded) {
                   take_exponents<ValueCodec>(context.width, values(e), read, s.aligned.exponents);
                 }
               });
  for (int v = 0; v < p.vectors; ++v) {
    estimate_output<ValueCodec>(context, s.aligned, v, values, s.values);
  }
  *s.bytes = {};  // the second pass reads the same, and counts it
}

template <class Ref>
void run_item(const AttendCall<Ref>& call, std::size_t part, int unit, int split,
              std::int64_t row0) noexcept {
  const Ref& r = call.r;
  const int sequence = call.in.parts[part].sequence.index;
  const PartShape p = part_shape(r, call.in.parts[part]);
  if (split >= p.splits) return;
  const ItemScratch s = item_scratch(call, part, unit, split);
  const int width = r.shape.value_width;
  for (int v = 0; v < p.vectors; ++v) s.states[v] = SoftmaxState{};
  *s.bytes = {};
  std::memset(
      s.accumulators, 0,
      static_cast<std::size_t>(p.vectors) * static_cast<std::size_t>(width) * sizeof(float));
  const bool is_whole = p.splits == 1 || takes_two_passes<Ref>(call.params.planes);
  if (is_whole && split > 0) return;  // split 0 reads everything
  load_queries(call, part, unit, row0, p, s);
  if constexpr (Ref::policy::projects) fill_offsets(r.rope, s.angles);
  const int count = r.entry_count(sequence, r.row_of_unit(unit));
  const int begin = is_whole ? 0 : split * split_entries;
  const int end = is_whole ? count : std::min(count, begin + split_entries);
  if constexpr (may_take_two_passes<Ref>) {
    if (takes_two_passes<Ref>(call.params.planes)) align_values(call, sequence, unit, end, p, s);
  }
  const int group = r.shape.query_heads / r.shape.kv_heads;
  visit_blocks(
      call, sequence, unit, begin, end, p, s,
      [&](Source source, int e, int variant, auto&& select) {
        const std::byte* block = source_block(r, source, sequence, unit, e);
        const NextBlock next =
            source == Source::sinks ? NextBlock{} : next_block(r, sequence, unit, e, end);
        block_scores(call, source, sequence, unit, e, variant, block, next.block, p, s);
        for (int v = 0, row = 0; v < p.vectors; v += group) {  // a group's members share a mask
          const std::uint64_t mask = select(row);
          row = row + 1 == p.rows ? 0 : row + 1;
          const auto first = static_cast<std::size_t>(v);
          float* scores = s.scores + first * block_tokens;
          if (mask == 0) {
            std::memset(scores, 0, static_cast<std::size_t>(group) * block_tokens * sizeof(float));
          } else {
            call.table.softmax_rows(scores, group, mask, s.states + v, width,
                                    s.accumulators + first * static_cast<std::size_t>(width));
          }
        }
        block_values(call, source, unit, block, r.visible_tokens(sequence), next, p, s);
      });
}

}  // namespace detail

}  // namespace cpu
}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
