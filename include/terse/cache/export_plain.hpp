/// Export of what a cache holds to an engine's plain pages: decoded, out of every basis, exact
/// where the newest query would read an exact copy.
#pragma once

#include <cstddef>
#include <cstdint>

#include "terse/cache/attention.hpp"
#include "terse/cache/ref.hpp"
#include "terse/config.hpp"
#include "terse/core/bits.hpp"
#include "terse/core/head_rows.hpp"
#include "terse/core/math.hpp"
#include "terse/core/rope.hpp"
#include "terse/core/span.hpp"
#include "terse/core/status.hpp"
#include "terse/layout/plain_pages.hpp"
#include "terse/policy/identity.hpp"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {

/// Where export_plain writes. Without a projector a unit is a KV head. Evictors that choose per
/// head leave each unit tokens of its own, so counts and positions are per unit; places of a unit
/// behind its tokens are left as they are.
struct PlainOutputs {
  void* keys = nullptr;    ///< tensor of pages
  void* values = nullptr;  ///< tensor of pages
  /// `[table row, unit]`: tokens written, at places 0 and later. Null on the host: not wanted.
  std::int32_t* tokens = nullptr;
  std::int32_t* positions = nullptr;  ///< `[table row, unit, max_places]` or null
  std::int32_t max_places = 0;        ///< that `positions` has room for
};

namespace detail {

/// The tokens of an entry of a unit, as the newest query reads them.
template <class Ref>
struct EntryReader {
  const Ref& r;
  int sequence, unit, entry;
  std::uint64_t live = 0;     ///< that the query sees
  std::uint64_t decoded = 0;  ///< of these, read from the encoded block; others have exact copies
  bool in_tail = false;       ///< all are read from the tail

  TERSE_HOST_DEVICE EntryReader(const Ref& ref, int of_sequence, int of_unit, int of_entry) noexcept
      : r(ref), sequence(of_sequence), unit(of_unit), entry(of_entry) {
    const std::int64_t visible = r.visible_tokens(sequence);
    const RowMask mask = row_mask(r, sequence, unit, entry, visible - 1, AttendParams{});
    live = r.live_mask(sequence, unit, entry) & r.before(sequence, unit, entry, visible);
    decoded = mask.decoded;
    in_tail = mask.exact != 0;
  }

  /// One number of a stream, in the basis of codec C. Precondition: the token is live.
  template <class C>
  [[nodiscard]] TERSE_HOST_DEVICE float load(Side side, int stream, int token,
                                             int channel) const noexcept {
    const ClassShape& shape = r.shape;
    const CodecContext context = r.context(side, unit, stream);
    if ((decoded >> token & 1u) != 0) {
      return C::decode(context, r.block(sequence, unit, entry) + shape.code_offset(side, stream),
                       token, channel);
    }
    if (in_tail) {
      const std::int64_t first = r.first_position(sequence, unit, entry);
      return Ref::policy::tail_codec::decode(
          context, r.tail_block(sequence, unit, first) + shape.tail_offset(side, stream), token,
          channel);
    }
    return Identity::load(context, r.sink_block(sequence, unit) + shape.sink_offset(side, stream),
                          sink_block_tokens,
                          static_cast<int>(r.position(sequence, unit, entry, token)), channel);
  }
};

/// Numbers are put by their offsets: a row is an element.
[[nodiscard]] TERSE_HOST_DEVICE inline MutableHeadRows elements_of(const PlainPages& pages,
                                                                   void* tensor) noexcept {
  return {tensor, pages.scalar, 1, pages.head_stride};
}

/// What can be wrong with the tensors and the table of an export of `count` sequences.
template <class Ref>
[[nodiscard]] Status check_export(const Ref& r, std::int64_t count, const PlainPages& pages,
                                  const PlainOutputs& out) noexcept {
  if (Status s = pages.validate(r.shape.kv_heads, r.shape.head_dim); !s.ok()) return s;
  if (count < 1 || count > r.shape.sequences || count > pages.table.rows) {
    return error(StatusCode::invalid_argument,
                 "terse::export_plain: between 1 and max_sequences sequences, a table row for each",
                 count);
  }
  if (out.keys == nullptr || out.values == nullptr) {
    return error(StatusCode::null_pointer, "terse::export_plain: keys or values are null");
  }
  return {};
}

/// ok, or why a sequence cannot be exported.
template <class Ref>
[[nodiscard]] TERSE_HOST_DEVICE StatusCode check_exported(const Ref& r, SequenceId id) noexcept {
  if (id.index < 0 || id.index >= r.shape.sequences) return StatusCode::stale_sequence;
  const SequenceRecord& record = r.sequences[id.index];
  if (record.alive == 0 || record.generation != id.generation) return StatusCode::stale_sequence;
  if (record.pending_tokens > 0 && r.was_appended(id.index) == 0) return StatusCode::wrong_phase;
  return StatusCode::ok;
}

/// ok, or why `tokens` tokens do not fit a table row; without its page numbers.
[[nodiscard]] TERSE_HOST_DEVICE inline StatusCode check_places(const PlainPages& pages,
                                                               const PlainOutputs& out,
                                                               int table_row,
                                                               std::int64_t tokens) noexcept {
  const bool fits =
      tokens <= pages.places(table_row) && (out.positions == nullptr || tokens <= out.max_places);
  return fits ? StatusCode::ok : StatusCode::buffer_too_small;
}

/// Whether one of `pages_used` pages of a table row is none of the tensors; every `step`-th from
/// `first` on is looked at.
[[nodiscard]] TERSE_HOST_DEVICE inline bool has_bad_page(const PlainPages& pages, int table_row,
                                                         std::int64_t pages_used, int first,
                                                         int step) noexcept {
  for (std::int64_t i = first; i < pages_used; i += step) {
    if (!pages.has_page(pages.table.page(table_row, i))) return true;
  }
  return false;
}

/// Index of (table row, unit) in PlainOutputs::tokens.
template <class Ref>
[[nodiscard]] TERSE_HOST_DEVICE std::size_t count_index(const Ref& r, int table_row,
                                                        int unit) noexcept {
  return static_cast<std::size_t>(table_row) * static_cast<std::size_t>(r.shape.unit.units) +
         static_cast<std::size_t>(unit);
}

/// Exports of one sequence on the host.
template <class Ref>
struct SequenceExport {
  using Policy = typename Ref::policy;

  const Ref& r;
  const PlainPages& pages;
  const PlainOutputs& out;
  int sequence;
  int table_row;

  [[nodiscard]] Status check() const noexcept {
    std::int64_t most = 0;
    for (int unit = 0; unit < r.shape.unit.units; ++unit) {
      const std::int64_t n = r.count_live(sequence, unit, r.visible_tokens(sequence));
      if (n > most) most = n;
    }
    if (const StatusCode code = check_places(pages, out, table_row, most); code != StatusCode::ok) {
      return error(code,
                   most > pages.places(table_row)
                       ? "terse::export_plain: a table row has too few pages; detail: places needed"
                       : "terse::export_plain: max_places is too small; detail: places needed",
                   most);
    }
    if (has_bad_page(pages, table_row, ceil_div(most, std::int64_t{pages.page_tokens}), 0, 1)) {
      return error(StatusCode::invalid_argument,
                   "terse::export_plain: the table names a page that the tensors do not have; "
                   "detail: the row",
                   table_row);
    }
    return {};
  }

  /// One stream of one token. `turns`: of its position.
  template <class C>
  void write(const EntryReader<Ref>& entry, Side side, int stream, int token, const float* turns,
             std::int64_t offset) const noexcept {
    const bool is_key = side == Side::key;
    const ClassShape& shape = r.shape;
    const CodecContext context = r.context(side, entry.unit, stream);
    const MutableHeadRows to = elements_of(pages, is_key ? out.keys : out.values);
    float x[max_stream_width];
    for (int c = 0; c < context.width; ++c) {
      x[c] = entry.template load<C>(side, stream, token, c);
    }
    from_basis<C>(context, x);
    const int heads = is_key ? shape.unit.key_heads_per_stream : shape.unit.value_heads_per_stream;
    const int first = entry.unit * shape.unit.heads_per_unit + stream * heads;
    if constexpr (Policy::projects) {
      const float* up = is_key ? r.factors.key_up : r.factors.value_up;
      for (int head = first; head < first + heads; ++head) {
        float rebuilt[max_head_dim];
        for (int c = 0; c < shape.head_dim; ++c) {
          const float* factors = up + (std::ptrdiff_t{head} * shape.head_dim + c) * context.width;
          double sum = 0;
          for (int i = 0; i < context.width; ++i) sum += double{factors[i]} * x[i];
          rebuilt[c] = static_cast<float>(sum);
        }
        if (is_key) turn(r.rope, turns, rebuilt);
        to.store(offset, head, shape.head_dim, rebuilt);
      }
    } else {
      to.store(offset, first, context.width, x);
    }
  }

  void run() const noexcept {
    float turns[max_head_dim];
    for (int unit = 0; unit < r.shape.unit.units; ++unit) {
      const std::size_t at = count_index(r, table_row, unit);
      std::int32_t place = 0;
      for (int e = 0; e < r.entry_count(sequence, r.row_of_unit(unit)); ++e) {
        const EntryReader<Ref> entry(r, sequence, unit, e);
        for (std::uint64_t left = entry.live; left != 0; left &= left - 1, ++place) {
          const int token = lowest_one(left);
          const std::int64_t position = r.position(sequence, unit, e, token);
          const std::int64_t offset = pages.offset(table_row, place);
          if constexpr (Policy::projects) {
            fill_turn(r.rope, static_cast<double>(position), turns);
          }
          for (int s = 0; s < r.shape.unit.key_streams; ++s) {
            write<typename Policy::key_codec>(entry, Side::key, s, token, turns, offset);
          }
          for (int s = 0; s < r.shape.unit.value_streams; ++s) {
            write<typename Policy::value_codec>(entry, Side::value, s, token, turns, offset);
          }
          if (out.positions != nullptr) {
            out.positions[at * static_cast<std::size_t>(out.max_places) +
                          static_cast<std::size_t>(place)] = static_cast<std::int32_t>(position);
          }
        }
      }
      if (out.tokens != nullptr) out.tokens[at] = place;
    }
  }
};

}  // namespace detail

/// Writes all live tokens of `sequences [table row]` to pages, a sequence to the table row of its
/// number, in the order of positions at places 0 and later: evicted tokens leave no gaps. Inside a
/// step the step's tokens are among them, once they are appended.
///
/// Keys are written as they were appended, after RoPE, with latents rebuilt and turned to their
/// positions, and everything rounded to nearest even (fp16 saturates). What is kept exact (tail,
/// sinks) is exact if the newest query would read it so, and everything else as it decodes.
/// Errors change nothing: stale_sequence, wrong_phase (a step's tokens are not appended to the
/// slot), buffer_too_small (too few pages of a table row, or max_places), invalid_argument (a page
/// that the tensors do not have). Const, allocates nothing. Precondition: no page occurs twice.
template <class Ref>
Status export_plain(const Ref& r, Span<const SequenceId> sequences, const PlainPages& pages,
                    const PlainOutputs& out) noexcept {
  const auto count = static_cast<std::int64_t>(sequences.size());
  if (Status s = detail::check_export(r, count, pages, out); !s.ok()) return s;
  const auto row_of = [&](int row) {
    const int index = sequences[static_cast<std::size_t>(row)].index;
    return detail::SequenceExport<Ref>{r, pages, out, index, row};
  };
  for (int row = 0; row < count; ++row) {
    const StatusCode code = detail::check_exported(r, sequences[static_cast<std::size_t>(row)]);
    if (code != StatusCode::ok) {
      return error(code,
                   code == StatusCode::stale_sequence
                       ? "terse::export_plain: a handle names no living sequence; detail: the "
                         "table row"
                       : "terse::export_plain: the tokens of a sequence's step are not yet "
                         "appended to the slot; detail: the table row",
                   row);
    }
    if (Status s = row_of(row).check(); !s.ok()) return s;
  }
  for (int row = 0; row < count; ++row) row_of(row).run();
  return {};
}

}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
