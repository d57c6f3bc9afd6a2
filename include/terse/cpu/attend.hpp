/// Attention over a cache on the host, straight from the encoded blocks.
///
/// The work is cut into items (part, unit, split of the entries) of a size that depends on the
/// inputs only, so results do not depend on the number of threads. A block is visited once for all
/// rows and query heads of its unit. Per-token scales, zeros and rotations never reach the inner
/// loop (docs/arithmetic.md).
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "terse/cache/attention.hpp"
#include "terse/config.hpp"
#include "terse/cpu/basis.hpp"
#include "terse/cpu/block_reader.hpp"
#include "terse/cpu/dispatch.hpp"
#include "terse/cpu/latent_keys.hpp"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {
namespace cpu {

/// A `parallel_for(count, f)` that calls `f(0) ... f(count - 1)` one after another. Callers pass
/// their own to use threads; calls of f are independent.
struct Serial {
  template <class F>
  void operator()(int count, F&& f) const {
    for (int i = 0; i < count; ++i) f(i);
  }
};

/// Entries of a row that one work item reads when few query rows share them.
inline constexpr int split_entries = 32;
/// From this many query rows of a unit on, a unit is one work item: the rows fill the kernels.
inline constexpr int unsplit_rows = 512;

namespace detail {

using terse::detail::prefix_end;
using terse::detail::prefix_shift;
using terse::detail::row_mask;
using terse::detail::RowMask;

/// Sizes of one part of an attend call.
struct PartShape {
  int rows = 0;     ///< query rows of the sequence
  int vectors = 0;  ///< query vectors of a unit: rows * query heads of the unit
  int splits = 1;
};

template <class Ref>
[[nodiscard]] PartShape part_shape(const Ref& r, const StepPart& part) noexcept {
  PartShape p;
  p.rows = part.tokens;
  p.vectors = part.tokens * r.shape.unit_query_heads();
  if (p.vectors < unsplit_rows) {
    int entries = 0;
    for (int row = 0; row < r.shape.rows; ++row) {
      entries = std::max(entries, r.entry_count(part.sequence.index, row));
    }
    p.splits = std::max(1, ceil_div(entries, split_entries));
  }
  return p;
}

/// Hands out 64-byte aligned ranges of the caller's workspace; with a null base it only counts.
class Arena {
 public:
  explicit Arena(std::byte* base) noexcept : base_(base) {}
  template <class T>
  T* take(std::size_t count) noexcept {
    T* at = base_ == nullptr ? nullptr : reinterpret_cast<T*>(base_ + used_);
    used_ += round_up(count * sizeof(T), std::size_t{64});
    return at;
  }
  [[nodiscard]] std::size_t used_bytes() const noexcept { return used_; }

 private:
  std::byte* base_;
  std::size_t used_ = 0;
};

/// Memory of one work item.
struct ItemScratch {
  float* queries[2] = {nullptr, nullptr};  ///< [vector, query width]; second: turned for the prefix
  std::byte* prepared[2] = {nullptr, nullptr};
  float* scores = nullptr;         ///< [vector, 64]
  float* accumulators = nullptr;   ///< [vector, value width]
  SoftmaxState* states = nullptr;  ///< [vector]
  RowMask* masks = nullptr;        ///< [row]
  float* keys = nullptr;           ///< decoded keys, [key width, 64]
  float* values = nullptr;         ///< decoded values, [64, value width]
  float* rebuilt = nullptr;        ///< rebuilt keys of one head, [head_dim, 64]
  float* vector = nullptr;         ///< one vector of any width
  AngleTables angles{};            ///< for rebuilt keys
};

template <class Ref>
void carve_item(const Ref& r, const KernelTable& table, const PartShape& p, Arena& arena,
                ItemScratch* s) noexcept {
  using Policy = typename Ref::policy;
  using Keys = BlockReader<typename Policy::key_codec>;
  using Values = BlockReader<typename Policy::value_codec>;
  const auto vectors = static_cast<std::size_t>(p.vectors);
  const auto head_dim = static_cast<std::size_t>(r.shape.head_dim);
  const auto key_width = static_cast<std::size_t>(r.shape.key_width);
  const auto value_width = static_cast<std::size_t>(r.shape.value_width);
  const int variants = Policy::reindex == Reindex::cache_index ? 2 : 1;
  for (int v = 0; v < variants; ++v) {
    s->queries[v] = arena.take<float>(vectors * head_dim);
    if constexpr (!Policy::projects) {
      s->prepared[v] =
          arena.take<std::byte>(Keys::prepared_bytes(table, p.vectors, r.shape.key_width));
    }
  }
  s->scores = arena.take<float>(vectors * block_tokens);
  s->accumulators = arena.take<float>(vectors * value_width);
  s->states = arena.take<SoftmaxState>(vectors);
  s->masks = arena.take<RowMask>(static_cast<std::size_t>(p.rows));
  if (Policy::projects || Keys::decodes_keys(p.vectors)) {
    s->keys = arena.take<float>(key_width * block_tokens);
  }
  if (Values::decodes_values(p.vectors / r.shape.unit.value_streams)) {
    s->values = arena.take<float>(value_width * block_tokens);
  }
  s->vector = arena.take<float>(std::max({head_dim, key_width, value_width}));
  if constexpr (Policy::projects) {
    s->rebuilt = arena.take<float>(head_dim * block_tokens);
    const auto pairs = static_cast<std::size_t>(r.rope.rotary_dim / 2);
    s->angles.steps = arena.take<double>(pairs);
    s->angles.offsets = arena.take<float>(pairs * 2 * block_tokens);
    s->angles.block = arena.take<float>(pairs * 2 * block_tokens);
  }
}

template <class Ref>
[[nodiscard]] std::size_t item_bytes(const Ref& r, const KernelTable& table,
                                     const PartShape& p) noexcept {
  Arena arena(nullptr);
  ItemScratch s;
  carve_item(r, table, p, arena, &s);
  return arena.used_bytes();
}

/// Where the items of a part lie in the workspace, unit after unit, split after split.
struct PartItems {
  std::size_t offset_bytes = 0;
  std::size_t item_bytes = 0;
};

/// Bytes of the table of PartItems with which a workspace begins.
[[nodiscard]] constexpr std::size_t items_table_bytes(std::size_t parts) noexcept {
  return round_up(parts * sizeof(PartItems), std::size_t{64});
}

/// Everything one attend call shares between its items.
template <class Ref>
struct AttendCall {
  const Ref& r;
  const AttendInputs& in;
  const AttendOutputs& out;
  const AttendParams& params;
  const KernelTable& table;
  float scale;
  std::byte* workspace;
  int max_splits;

  [[nodiscard]] const PartItems& items(std::size_t part) const noexcept {
    return reinterpret_cast<const PartItems*>(workspace)[part];
  }
};

template <class Ref>
[[nodiscard]] ItemScratch item_scratch(const AttendCall<Ref>& call, std::size_t part, int unit,
                                       int split) noexcept {
  const PartShape p = part_shape(call.r, call.in.parts[part]);
  const PartItems& items = call.items(part);
  const auto item = static_cast<std::size_t>(unit) * static_cast<std::size_t>(p.splits) +
                    static_cast<std::size_t>(split);
  Arena arena(call.workspace + items.offset_bytes + item * items.item_bytes);
  ItemScratch s;
  carve_item(call.r, call.table, p, arena, &s);
  return s;
}

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
            turn_to_basis<KeyCodec>(call.table, CodecContext{Side::key, shape.key_width}, x);
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
    const int per_head = p.vectors / shape.unit.heads_per_unit;
    block_angles(call.r, sequence, unit, entry, source == Source::sinks, s.angles);
    for (int h = 0; h < shape.unit.heads_per_unit; ++h) {
      const int stream = h / shape.unit.key_heads_per_stream;
      const CodecContext context{Side::key, shape.key_width};
      const std::byte* latents = source == Source::encoded
                                     ? block + shape.key_offset(stream)
                                     : block + shape.exact_key_offset(stream, tokens);
      if (!HasBasis<KeyCodec> && source != Source::encoded) {
        call.table.scores_f16(key_up(call.r, unit * shape.unit.heads_per_unit + h), shape.head_dim,
                              shape.key_width, reinterpret_cast<const F16*>(latents), tokens,
                              s.rebuilt, nullptr);
      } else if (!HasBasis<KeyCodec> && PlainCodec<KeyCodec>) {
        BlockReader<KeyCodec>::scores(call.table, context, latents,
                                      key_up(call.r, unit * shape.unit.heads_per_unit + h), nullptr,
                                      shape.head_dim, s.rebuilt, nullptr, nullptr);
      } else {
        if (h % shape.unit.key_heads_per_stream == 0) {
          if (source == Source::encoded) {
            BlockReader<KeyCodec>::decode(call.table, context, latents, s.keys);
          } else {
            decode_exact_keys(context, latents, tokens, s.keys);
          }
          leave_basis<KeyCodec>(call.table, context, tokens, s.keys, s.vector);
        }
        call.table.scores_f32(key_up(call.r, unit * shape.unit.heads_per_unit + h), shape.head_dim,
                              shape.key_width, s.keys, block_tokens, s.rebuilt);
      }
      rotate_rebuilt(call.r.rope, tokens, s.angles.block, s.rebuilt);
      call.table.scores_f32(s.queries[variant] + std::ptrdiff_t{h} * per_head * shape.head_dim,
                            per_head, shape.head_dim, s.rebuilt, block_tokens,
                            s.scores + std::ptrdiff_t{h} * per_head * block_tokens);
    }
  } else if (source == Source::encoded) {
    BlockReader<KeyCodec>::scores(call.table, CodecContext{Side::key, shape.key_width}, block,
                                  s.queries[variant], s.prepared[variant], p.vectors, s.scores,
                                  s.keys, next);
  } else {
    call.table.scores_f16(s.queries[variant], p.vectors, shape.key_width,
                          reinterpret_cast<const F16*>(block), tokens, s.scores, next);
  }
  if (call.params.logit_soft_cap > 0) {
    for (int v = 0; v < p.vectors; ++v) {
      call.table.soft_cap(s.scores + std::ptrdiff_t{v} * block_tokens, tokens,
                          call.params.logit_soft_cap);
    }
  }
}

/// accumulators += probabilities * values of one block.
template <class Ref>
void block_values(const AttendCall<Ref>& call, Source source, const std::byte* block,
                  const std::byte* next, const PartShape& p, const ItemScratch& s) noexcept {
  using ValueCodec = typename Ref::policy::value_codec;
  const ClassShape& shape = call.r.shape;
  const CodecContext context{Side::value, shape.value_width};
  const int per_stream = p.vectors / shape.unit.value_streams;
  for (int stream = 0; stream < shape.unit.value_streams; ++stream) {
    const auto first = static_cast<std::size_t>(stream * per_stream);
    const float* probabilities = s.scores + first * block_tokens;
    float* accumulators = s.accumulators + first * static_cast<std::size_t>(shape.value_width);
    if (source == Source::encoded) {
      BlockReader<ValueCodec>::values(call.table, context, block + shape.value_offset(stream),
                                      probabilities, per_stream, accumulators, s.values, next);
    } else {
      const int tokens = source_tokens(source);
      call.table.values_f16(
          probabilities, per_stream, shape.value_width,
          reinterpret_cast<const F16*>(block + shape.exact_value_offset(stream, tokens)), tokens,
          accumulators, next);
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

/// What the next entry will be read from, as a hint: its block or, while it has none, the tail.
struct NextBlock {
  const std::byte* keys = nullptr;
  const std::byte* values = nullptr;
};

template <class Ref>
[[nodiscard]] NextBlock next_block(const Ref& r, int sequence, int unit, int entry,
                                   int end) noexcept {
  if (entry + 1 >= end) return {};
  if (r.page(sequence, r.row_of_unit(unit), entry + 1) != no_page) {
    const std::byte* block = r.block(sequence, unit, entry + 1);
    return {block, block + r.shape.value_offset(0)};
  }
  const std::byte* tail = r.tail_block(sequence, unit, r.first_position(sequence, unit, entry + 1));
  return {tail, tail + r.shape.exact_value_offset(0, block_tokens)};
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
  std::memset(
      s.accumulators, 0,
      static_cast<std::size_t>(p.vectors) * static_cast<std::size_t>(width) * sizeof(float));
  load_queries(call, part, unit, row0, p, s);
  if constexpr (Ref::policy::projects) fill_offsets(r.rope, s.angles);
  const int count = r.entry_count(sequence, r.row_of_unit(unit));
  const int begin = p.splits == 1 ? 0 : split * split_entries;
  const int end = p.splits == 1 ? count : std::min(count, begin + split_entries);
  const int group = r.shape.query_heads / r.shape.kv_heads;
  visit_blocks(
      call, sequence, unit, begin, end, p, s,
      [&](Source source, int e, int variant, auto&& select) {
        const std::byte* block = source_block(r, source, sequence, unit, e);
        const NextBlock next =
            source == Source::sinks ? NextBlock{} : next_block(r, sequence, unit, e, end);
        block_scores(call, source, sequence, unit, e, variant, block, next.keys, p, s);
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
        block_values(call, source, block, next.values, p, s);
      });
}

/// The same array of another split of the unit: items of a unit follow each other in the workspace.
template <class T>
[[nodiscard]] const T* at_split(const PartItems& items, const T* of_split_0, int split) noexcept {
  return reinterpret_cast<const T*>(reinterpret_cast<const std::byte*>(of_split_0) +
                                    static_cast<std::size_t>(split) * items.item_bytes);
}

/// Sum of products in 16 partial sums, so that they need not wait for each other.
[[nodiscard]] inline float dot(const float* a, const float* b, std::size_t count) noexcept {
  float sums[16] = {};
  std::size_t i = 0;
  for (; i + 16 <= count; i += 16) {
    for (std::size_t k = 0; k < 16; ++k) sums[k] += a[i + k] * b[i + k];
  }
  for (; i < count; ++i) sums[i % 16] += a[i] * b[i];
  float sum = 0.0f;
  for (const float x : sums) sum += x;
  return sum;
}

/// Merges the splits of a unit into split 0, leaves the basis, projects and stores.
template <class Ref>
void finish_unit(const AttendCall<Ref>& call, std::size_t part, int unit,
                 std::int64_t row0) noexcept {
  using Policy = typename Ref::policy;
  const ClassShape& shape = call.r.shape;
  const PartShape p = part_shape(call.r, call.in.parts[part]);
  const PartItems& items = call.items(part);
  const ItemScratch s = item_scratch(call, part, unit, 0);
  const int group = shape.query_heads / shape.kv_heads;
  const auto width = static_cast<std::size_t>(shape.value_width);
  for (int h = 0; h < shape.unit.heads_per_unit; ++h) {
    for (int row = 0; row < p.rows; ++row) {
      for (int g = 0; g < group; ++g) {
        const auto v = static_cast<std::size_t>(vector_index(h, row, g, p.rows, group));
        const int kv_head = unit * shape.unit.heads_per_unit + h;
        const int head = kv_head * group + g;
        const float sink =
            call.params.sink_logits == nullptr ? -INFINITY : call.params.sink_logits[head];
        float high = sink;
        bool sees_nothing = sink == -INFINITY;
        for (int split = 0; split < p.splits; ++split) {
          const SoftmaxState state = at_split(items, s.states, split)[v];
          high = std::max(high, state.max);
          sees_nothing = sees_nothing && state.sum == 0.0f;  // a NaN is not nothing
        }
        float sum = sink == -INFINITY ? 0.0f : std::exp(sink - high);
        float* mean = s.accumulators + v * width;
        for (int split = 0; split < p.splits; ++split) {
          const SoftmaxState state = at_split(items, s.states, split)[v];
          const float weight = state.max == -INFINITY ? 0.0f : std::exp(state.max - high);
          sum += state.sum * weight;
          if (split == 0) {
            for (std::size_t c = 0; c < width; ++c) mean[c] *= weight;
          } else {
            const float* partial = at_split(items, s.accumulators, split) + v * width;
            for (std::size_t c = 0; c < width; ++c) mean[c] += partial[c] * weight;
          }
        }
        const float inverse = sees_nothing ? 0.0f : 1.0f / sum;
        for (std::size_t c = 0; c < width; ++c) mean[c] *= inverse;
        turn_from_basis<typename Policy::value_codec>(
            call.table, CodecContext{Side::value, shape.value_width}, mean);
        const float* result = mean;
        if constexpr (Policy::projects) {
          if (!call.params.latent_output) {
            const float* up =
                call.r.factors.value_up + static_cast<std::size_t>(kv_head) *
                                              static_cast<std::size_t>(shape.head_dim) * width;
            for (int c = 0; c < shape.head_dim; ++c) {
              s.vector[c] = dot(up + static_cast<std::size_t>(c) * width, mean, width);
            }
            result = s.vector;
          }
        }
        const int channels = call.params.latent_output ? shape.value_width : shape.head_dim;
        call.out.output.store(row0 + row, head, channels, result);
        const float lse = sees_nothing ? -INFINITY : high + std::log(sum);
        s.states[v] = SoftmaxState{lse, 0.0f};
        if (call.out.lse_ln != nullptr) {
          call.out.lse_ln[(row0 + row) * shape.query_heads + head] = lse;
        }
      }
    }
  }
}

/// First query row of a part.
[[nodiscard]] inline std::int64_t first_row(const AttendInputs& in, std::size_t part) noexcept {
  std::int64_t row = 0;
  for (std::size_t i = 0; i < part; ++i) row += in.parts[i].tokens;
  return row;
}

/// Sets the log-sum-exps of a unit's vectors, where finish_unit would leave them.
template <class Ref>
void take_lse(const AttendCall<Ref>& call, std::size_t part, int unit, std::int64_t row0,
              const float* lse_ln) noexcept {
  const ClassShape& shape = call.r.shape;
  const PartShape p = part_shape(call.r, call.in.parts[part]);
  const ItemScratch s = item_scratch(call, part, unit, 0);
  const int group = shape.query_heads / shape.kv_heads;
  for (int h = 0; h < shape.unit.heads_per_unit; ++h) {
    for (int row = 0; row < p.rows; ++row) {
      for (int g = 0; g < group; ++g) {
        const int head = (unit * shape.unit.heads_per_unit + h) * group + g;
        s.states[vector_index(h, row, g, p.rows, group)] =
            SoftmaxState{lse_ln[(row0 + row) * shape.query_heads + head], 0.0f};
      }
    }
  }
}

/// Attention probabilities of a unit's tokens, from the finished log-sum-exp: exact, also when the
/// attention itself was computed in splits.
template <class Ref>
void sum_columns(const AttendCall<Ref>& call, std::size_t part, int unit,
                 std::int64_t row0) noexcept {
  const Ref& r = call.r;
  const int sequence = call.in.parts[part].sequence.index;
  const PartShape p = part_shape(r, call.in.parts[part]);
  const ItemScratch s = item_scratch(call, part, unit, 0);
  const int count = r.entry_count(sequence, r.row_of_unit(unit));
  const int group = r.shape.query_heads / r.shape.kv_heads;
  float* sums = call.out.column_sums + (part * static_cast<std::size_t>(r.shape.unit.units) +
                                        static_cast<std::size_t>(unit)) *
                                           static_cast<std::size_t>(r.shape.entries) * block_tokens;
  std::memset(sums, 0, static_cast<std::size_t>(count) * block_tokens * sizeof(float));
  load_queries(call, part, unit, row0, p, s);
  if constexpr (Ref::policy::projects) fill_offsets(r.rope, s.angles);
  visit_blocks(
      call, sequence, unit, 0, count, p, s, [&](Source source, int e, int variant, auto&& select) {
        block_scores(call, source, sequence, unit, e, variant,
                     source_block(r, source, sequence, unit, e), nullptr, p, s);
        for (int v = 0; v < p.vectors; ++v) {
          const std::uint64_t mask = select(v / group % p.rows);
          if (mask == 0 || s.states[v].max == -INFINITY) continue;
          float* scores = s.scores + static_cast<std::size_t>(v) * block_tokens;
          // No logit exceeds the log-sum-exp, so the maximum stays and exp(x - lse) comes out.
          SoftmaxState state = s.states[v];
          const float factor = call.table.softmax_block(scores, mask, &state);
          float* own = sums + static_cast<std::size_t>(e) * block_tokens;
          if (source != Source::sinks) {
            for (int t = 0; t < block_tokens; ++t) own[t] += factor * scores[t];
            continue;
          }
          for (std::uint64_t live = r.live_mask(sequence, unit, e); live != 0; live &= live - 1) {
            const int t = std::countr_zero(live);
            const std::int64_t at = r.position(sequence, unit, e, t);  // sinks lie by position
            if (at < sink_block_tokens) own[t] += factor * scores[at];
          }
        }
      });
}

}  // namespace detail

/// Bytes of workspace that attend needs for these parts, exactly.
template <class Ref>
[[nodiscard]] std::size_t attend_workspace_bytes(const Ref& r, Span<const StepPart> parts,
                                                 const KernelTable& table = kernels()) noexcept {
  std::size_t bytes = detail::items_table_bytes(parts.size());
  for (const StepPart& part : parts) {
    if (part.sequence.index < 0 || part.sequence.index >= r.shape.sequences || part.tokens < 1) {
      continue;
    }
    const detail::PartShape p = detail::part_shape(r, part);
    bytes += detail::item_bytes(r, table, p) * static_cast<std::size_t>(r.shape.unit.units) *
             static_cast<std::size_t>(p.splits);
  }
  return bytes;
}

/// The largest attend_workspace_bytes of any call with at most `num_parts` parts of at most
/// `rows_per_part` query rows each, whatever the sequences hold, now or later: for engines that
/// allocate once. Reached by calls over full sequences.
template <class Ref>
[[nodiscard]] std::size_t max_attend_workspace_bytes(
    const Ref& r, int num_parts, int rows_per_part, const KernelTable& table = kernels()) noexcept {
  if (num_parts < 1 || rows_per_part < 1) return 0;
  const int heads = r.shape.unit_query_heads();
  const auto part_bytes = [&](int rows) {
    detail::PartShape p{.rows = rows, .vectors = rows * heads};
    if (p.vectors < unsplit_rows) p.splits = ceil_div(r.shape.entries, split_entries);
    return detail::item_bytes(r, table, p) * static_cast<std::size_t>(p.splits);
  };
  // An item grows with its rows but for two steps down: where rows are no longer split, and where
  // codes are no longer multiplied as they are.
  std::size_t largest = part_bytes(rows_per_part);
  for (const int vectors : {unsplit_rows - 1, packed_vectors}) {
    const int rows = std::min(rows_per_part, vectors / heads);
    if (rows > 0) largest = std::max(largest, part_bytes(rows));
  }
  const auto parts = static_cast<std::size_t>(num_parts);
  return detail::items_table_bytes(parts) +
         parts * static_cast<std::size_t>(r.shape.unit.units) * largest;
}

/// Whether codes are read by a kernel of their own rather than through the codec's `decode`.
template <class Ref>
inline constexpr bool is_specialized = BlockReader<typename Ref::policy::key_codec>::specialized&&
    BlockReader<typename Ref::policy::value_codec>::specialized;

/// Names of the key and value kernels that attend will run, for example "affine_2_bit_per_channel".
template <class Ref>
[[nodiscard]] constexpr const char* key_kernel_name() noexcept {
  return BlockReader<typename Ref::policy::key_codec>::name;
}
template <class Ref>
[[nodiscard]] constexpr const char* value_kernel_name() noexcept {
  return BlockReader<typename Ref::policy::value_codec>::name;
}

namespace detail {

/// Whether the table's own code reads the blocks' codes, rather than the codec's `decode` or the
/// portable code that serves odd scale groups.
template <class Ref>
[[nodiscard]] bool runs_specialized(const Ref& r, const KernelTable& table) noexcept {
  const auto covered = [&]<class C>(Side side, int width) {
    if constexpr (AffineCodec<C>) return table.covers(C::affine_format, side, width);
    return true;
  };
  return is_specialized<Ref> &&
         covered.template operator()<typename Ref::policy::key_codec>(Side::key,
                                                                      r.shape.key_width) &&
         covered.template operator()<typename Ref::policy::value_codec>(Side::value,
                                                                        r.shape.value_width);
}

[[nodiscard]] inline Status check_workspace(Span<std::byte> workspace, std::size_t need) noexcept {
  if (workspace.data() == nullptr || workspace.size() < need) {
    return error(StatusCode::buffer_too_small,
                 "terse::attend: the workspace is smaller than attend_workspace_bytes; detail: "
                 "bytes needed",
                 static_cast<std::int64_t>(need));
  }
  if (reinterpret_cast<std::uintptr_t>(workspace.data()) % 64 != 0) {
    return error(StatusCode::misaligned, "terse::attend: the workspace must be 64-byte aligned");
  }
  return {};
}

/// Divides the workspace among the parts.
template <class Ref>
[[nodiscard]] AttendCall<Ref> make_call(const Ref& r, const AttendInputs& in,
                                        const AttendOutputs& out, const AttendParams& params,
                                        const KernelTable& table, std::byte* workspace) noexcept {
  auto* items = reinterpret_cast<PartItems*>(workspace);
  std::size_t offset = items_table_bytes(in.parts.size());
  int splits = 1;
  for (std::size_t i = 0; i < in.parts.size(); ++i) {
    const PartShape p = part_shape(r, in.parts[i]);
    items[i] = {offset, item_bytes(r, table, p)};
    offset += items[i].item_bytes * static_cast<std::size_t>(r.shape.unit.units) *
              static_cast<std::size_t>(p.splits);
    splits = std::max(splits, p.splits);
  }
  const float scale = params.softmax_scale > 0
                          ? params.softmax_scale
                          : 1.0f / std::sqrt(static_cast<float>(r.shape.head_dim));
  return {r, in, out, params, table, scale, workspace, splits};
}

/// Calls `f(part, unit, row0)` for every unit of every part, `row0` being the part's first row.
template <class Ref, class ParallelFor, class F>
void for_each_unit(const AttendCall<Ref>& call, ParallelFor&& parallel_for, F&& f) {
  const int units = call.r.shape.unit.units;
  parallel_for(static_cast<int>(call.in.parts.size()) * units, [&](int item) {
    const auto part = static_cast<std::size_t>(item / units);
    f(part, item % units, first_row(call.in, part));
  });
}

}  // namespace detail

/// Attention of the parts' query rows over everything their sequences hold.
///
/// Const and reentrant; allocates nothing. `workspace`: attend_workspace_bytes, 64-byte aligned,
/// used by this call alone while it runs. `parallel_for(count, f)` must call f(0) ... f(count - 1),
/// in any order, on any threads, and return when all are done. Fully masked rows give zeros and
/// lse_ln = -inf. Outputs are within 1e-5 (fp32) of exact arithmetic on the decoded codes, relative
/// L2, and do not depend on threads.
template <class Ref, class ParallelFor = Serial>
Status attend(const Ref& r, const AttendInputs& in, const AttendOutputs& out,
              Span<std::byte> workspace, const AttendParams& params = {},
              ParallelFor&& parallel_for = {}, const KernelTable& table = kernels()) {
  if (Status s = terse::detail::check_attend(r, in, out, params); !s.ok()) return s;
  if (params.require_specialized && !detail::runs_specialized(r, table)) {
    return error(StatusCode::unsupported,
                 "terse::attend: no specialised kernel reads this policy's codes; store them by "
                 "terse/quant/codes.hpp and declare affine_format with scale groups of a multiple "
                 "of 16, or drop require_specialized");
  }
  const std::size_t need = attend_workspace_bytes(r, in.parts, table);
  if (Status s = detail::check_workspace(workspace, need); !s.ok()) return s;
  const auto call = detail::make_call(r, in, out, params, table, workspace.data());
  const int units = r.shape.unit.units, splits = call.max_splits;
  parallel_for(static_cast<int>(in.parts.size()) * units * splits, [&](int item) {
    const auto part = static_cast<std::size_t>(item / splits / units);
    detail::run_item(call, part, item / splits % units, item % splits, detail::first_row(in, part));
  });
  detail::for_each_unit(call, parallel_for, [&](std::size_t part, int unit, std::int64_t row0) {
    detail::finish_unit(call, part, unit, row0);
    if (out.column_sums != nullptr) detail::sum_columns(call, part, unit, row0);
  });
  return {};
}

/// Column sums of attention that was computed in parts: probabilities of the tokens held here under
/// `lse_ln [row, query_head]`, the merged log-sum-exp of this cache and of whatever else the rows
/// saw. Rows with lse_ln = -inf saw nothing. Writes `column_sums [part, unit, entry, 64]` as attend
/// does, for KVCache::observe; workspace, threads and errors as in attend.
template <class Ref, class ParallelFor = Serial>
Status sum_attention_columns(const Ref& r, const AttendInputs& in, const float* lse_ln,
                             float* column_sums, Span<std::byte> workspace,
                             const AttendParams& params = {}, ParallelFor&& parallel_for = {},
                             const KernelTable& table = kernels()) {
  if (Status s = terse::detail::check_queries(r, in, params); !s.ok()) return s;
  if (lse_ln == nullptr || column_sums == nullptr) {
    return error(StatusCode::null_pointer,
                 "terse::sum_attention_columns: lse_ln or column_sums is null");
  }
  const std::size_t need = attend_workspace_bytes(r, in.parts, table);
  if (Status s = detail::check_workspace(workspace, need); !s.ok()) return s;
  const AttendOutputs out{.column_sums = column_sums};
  const auto call = detail::make_call(r, in, out, params, table, workspace.data());
  detail::for_each_unit(call, parallel_for, [&](std::size_t part, int unit, std::int64_t row0) {
    detail::take_lse(call, part, unit, row0, lse_ln);
    detail::sum_columns(call, part, unit, row0);
  });
  return {};
}

}  // namespace cpu
}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
