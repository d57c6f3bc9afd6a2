/// How an attend call is cut into items, and where their memory lies in the workspace.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>

#include "terse/cache/attention.hpp"
#include "terse/config.hpp"
#include "terse/cpu/aligned_values.hpp"
#include "terse/cpu/block_reader.hpp"
#include "terse/cpu/dispatch.hpp"
#include "terse/cpu/latent_keys.hpp"
#include "terse/policy/tail.hpp"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {
namespace cpu {

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
  float* offsets[2] = {nullptr, nullptr};  ///< [vector]: what products with stored keys lack
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
  BytesRead* bytes = nullptr;      ///< of encoded blocks
  AlignedValues aligned{};         ///< of planes of fp16 numbers
};

template <class Ref>
void carve_item(const Ref& r, const KernelTable& table, const PartShape& p, Arena& arena,
                ItemScratch* s) noexcept {
  using Policy = typename Ref::policy;
  using Keys = BlockReader<typename Policy::key_codec>;
  using Values = BlockReader<typename Policy::value_codec>;
  using Tail = BlockReader<typename Policy::tail_codec>;
  const auto vectors = static_cast<std::size_t>(p.vectors);
  const auto head_dim = static_cast<std::size_t>(r.shape.head_dim);
  const auto key_width = static_cast<std::size_t>(r.shape.key_width);
  const auto value_width = static_cast<std::size_t>(r.shape.value_width);
  const int variants = Policy::reindex == Reindex::cache_index ? 2 : 1;
  for (int v = 0; v < variants; ++v) {
    s->queries[v] = arena.take<float>(vectors * head_dim);
    if constexpr (HasQueryOffset<typename Policy::key_codec>) {
      s->offsets[v] = arena.take<float>(vectors);
    }
    if constexpr (!Policy::projects) {
      s->prepared[v] =
          arena.take<std::byte>(Keys::prepared_bytes(table, p.vectors, r.shape.key_width));
    }
  }
  s->scores = arena.take<float>(vectors * block_tokens);
  s->accumulators = arena.take<float>(vectors * value_width);
  s->states = arena.take<SoftmaxState>(vectors);
  s->masks = arena.take<RowMask>(static_cast<std::size_t>(p.rows));
  if (Policy::projects || !has_f16_tail<Policy> || Keys::decodes_keys(p.vectors)) {
    s->keys = arena.take<float>(key_width * block_tokens);
  }
  const int sharing = p.vectors / r.shape.unit.value_streams;
  if (Values::decodes_values(sharing) || (!has_f16_tail<Policy> && Tail::decodes_values(sharing))) {
    s->values = arena.take<float>(value_width * block_tokens);
  }
  s->vector = arena.take<float>(std::max({head_dim, key_width, value_width}));
  s->bytes = arena.take<BytesRead>(1);
  if constexpr (ExponentPlanes<typename Policy::value_codec> && !Policy::projects) {
    s->aligned.likely = arena.take<LikelyToken>(vectors * estimate_tokens);
    s->aligned.states = arena.take<SoftmaxState>(vectors);
    s->aligned.aligned = arena.take<int>(vectors);
    s->aligned.exponents = arena.take<std::uint8_t>(value_width);
    s->aligned.estimate = arena.take<float>(value_width);
  }
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

/// First query row of a part.
[[nodiscard]] inline std::int64_t first_row(const AttendInputs& in, std::size_t part) noexcept {
  std::int64_t row = 0;
  for (std::size_t i = 0; i < part; ++i) row += in.parts[i].tokens;
  return row;
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

/// Bytes of workspace that attend needs for these parts, exactly. Parts that it would refuse may
/// count as nothing.
template <class Ref>
[[nodiscard]] std::size_t attend_workspace_bytes(const Ref& r, Span<const StepPart> parts,
                                                 const KernelTable& table = kernels()) noexcept {
  std::size_t bytes = detail::items_table_bytes(parts.size());
  for (const StepPart& part : parts) {
    if (part.sequence.index < 0 || part.sequence.index >= r.shape.sequences || part.tokens < 1 ||
        part.tokens > r.shape.max_step_tokens) {
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
  rows_per_part = std::min(rows_per_part, r.shape.max_step_tokens);  // attend takes no more
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

}  // namespace cpu
}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
