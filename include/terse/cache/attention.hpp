/// What attention takes and gives, and which tokens a query row sees.
#pragma once

#include <cmath>
#include <cstdint>

#include "terse/cache/ref.hpp"
#include "terse/config.hpp"
#include "terse/core/bits.hpp"
#include "terse/core/head_rows.hpp"
#include "terse/core/span.hpp"
#include "terse/policy/plane_reading.hpp"
#include "terse/quant/plane_exponents.hpp"
#include "terse/quant/planes.hpp"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {

struct AttendParams {
  float softmax_scale = 0;        ///< 0: 1 / sqrt(head_dim)
  float logit_soft_cap = 0;       ///< c > 0: logits become c * tanh(logit / c)
  int sliding_window_tokens = 0;  ///< w > 0: position p sees only positions above p - w
  /// `[query_head]` or null: one more logit per head whose value is zero (attention sinks that the
  /// model learned). It is part of lse_ln.
  const float* sink_logits = nullptr;
  /// false: a row also sees the newer tokens of its part (drafts as a tree, bidirectional
  /// prefixes).
  bool causal = true;
  bool latent_output = false;  ///< with a projector: give `[row, query_head, value_rank]`
  bool require_specialized = false;
  ///< refuse to read codes through `decode`, or by portable code where vector code serves others
  PlaneReading planes{};  ///< how deep codes that are stored as planes are read
};

/// The query rows of part i are the newest `parts[i].tokens` positions of its sequence, of a step
/// in progress if there is one. Rows lie one part after another.
struct AttendInputs {
  Span<const StepPart> parts{};
  HeadRows queries{};  ///< `[row, query_head, head_dim]`, after RoPE at their positions
};

struct AttendOutputs {
  MutableHeadRows output{};  ///< `[row, query_head, head_dim]`; zero where a row sees no token
  float* lse_ln =
      nullptr;  ///< `[row, query_head]` or null; natural log, -inf where no token is seen
  /// `[part, unit, entry, 64]` or null: attention probabilities summed over the rows of a part and
  /// the query heads of a unit. Written for the entries in use. Sizes: KVCache::column_sum_floats.
  float* column_sums = nullptr;
  /// `[part, unit]` or null: what the call read of encoded blocks is added here.
  BytesRead* bytes_read = nullptr;
};

/// Combines two attention states over disjoint token sets, in place of the first: outputs
/// `[rows, channels]`, `lse_ln [rows]`. Empty states (lse_ln = -inf) are neutral. Sink logits must
/// be part of one of the two only.
inline void merge(std::int64_t rows, int channels, float* output, float* lse_ln,
                  const float* other_output, const float* other_lse_ln) noexcept {
  for (std::int64_t r = 0; r < rows; ++r) {
    const float a = lse_ln[r], b = other_lse_ln[r];
    const float high = a > b ? a : b;
    if (b == -INFINITY) continue;
    if (a == -INFINITY) {
      for (int c = 0; c < channels; ++c) output[r * channels + c] = other_output[r * channels + c];
      lse_ln[r] = b;
      continue;
    }
    const float weight_a = std::exp(a - high), weight_b = std::exp(b - high);
    const float sum = weight_a + weight_b;
    for (int c = 0; c < channels; ++c) {
      float& x = output[r * channels + c];
      x = (x * weight_a + other_output[r * channels + c] * weight_b) / sum;
    }
    lse_ln[r] = high + std::log(sum);
  }
}

namespace detail {

/// Tokens of one entry that one query row reads.
struct RowMask {
  std::uint64_t decoded = 0;  ///< from the encoded block
  std::uint64_t exact = 0;    ///< from the tail
  std::uint64_t sinks = 0;    ///< from the exact sinks; bit = position
};

template <class Ref>
[[nodiscard]] TERSE_HOST_DEVICE RowMask row_mask(const Ref& r, int sequence, int unit, int entry,
                                                 std::int64_t position,
                                                 const AttendParams& params) noexcept {
  RowMask mask;
  const std::int64_t end = params.causal ? position + 1 : r.visible_tokens(sequence);
  std::uint64_t seen = r.live_mask(sequence, unit, entry) & r.before(sequence, unit, entry, end);
  if (params.sliding_window_tokens > 0) {
    seen &= ~r.before(sequence, unit, entry, position - params.sliding_window_tokens + 1);
  }
  if (seen == 0) return mask;
  const std::int64_t first = r.first_position(sequence, unit, entry);
  const bool in_tail = !r.shape.open && first >= r.grids[sequence].exact_begin;
  if (in_tail && first >= r.sealed_before(sequence, position)) {
    mask.exact = seen;
  } else {
    mask.decoded = seen;
    if (first < r.shape.tail.sink_tokens) {
      std::uint64_t sinks = seen & r.before(sequence, unit, entry, r.shape.tail.sink_tokens);
      mask.decoded = seen & ~sinks;
      for (; sinks != 0; sinks &= sinks - 1) {
        mask.sinks |= std::uint64_t{1} << r.position(sequence, unit, entry, lowest_one(sinks));
      }
    }
  }
  return mask;
}

/// Steps by which a query at `position` is turned for the tokens before the evictor's prefix end,
/// so that distances to them are those inside the cache. 0 without Reindex::cache_index.
template <class Ref>
[[nodiscard]] TERSE_HOST_DEVICE std::int64_t prefix_shift(const Ref& r, int sequence, int unit,
                                                          std::int64_t position) noexcept {
  if constexpr (Ref::policy::reindex == Reindex::cache_index) {
    return r.count_live(sequence, unit, position + 1) - 1 - position;
  } else {
    return 0;
  }
}

/// End of the positions that prefix_shift is about.
template <class Ref>
[[nodiscard]] TERSE_HOST_DEVICE std::int64_t prefix_end(const Ref& r) noexcept {
  if constexpr (Ref::policy::reindex == Reindex::cache_index) {
    return Ref::policy::evictor::prefix_tokens(r.eviction);
  } else {
    return 0;
  }
}

/// Whether the query at `position` sees live tokens that the tail's rule says to read exactly, and
/// whose exact copies later steps or compact have taken.
template <class Ref>
[[nodiscard]] bool misses_exact_copies(const Ref& r, int sequence, std::int64_t position,
                                       const AttendParams& params) noexcept {
  if (r.shape.open) return false;
  const GridRecord& grid = r.grids[sequence];
  const std::int64_t by_rule = grid.origin + r.shape.tail.sealed_before(position - grid.origin);
  std::int64_t begin = by_rule > grid.decoded_before ? by_rule : grid.decoded_before;
  if (params.sliding_window_tokens > 0) {
    const std::int64_t window = position - params.sliding_window_tokens + 1;
    if (window > begin) begin = window;
  }
  const std::int64_t end = grid.exact_begin <= position ? grid.exact_begin : position + 1;
  if (begin >= end) return false;
  for (int unit = 0; unit < r.shape.unit.units; ++unit) {
    if (r.count_live(sequence, unit, end) != r.count_live(sequence, unit, begin)) return true;
  }
  return false;
}

/// What can be wrong with the reading of planes.
template <class Policy>
[[nodiscard]] Status check_planes(const PlaneReading& reading) noexcept {
  using K = typename Policy::key_codec;
  using V = typename Policy::value_codec;
  if (Status s = reading.validate(); !s.ok()) return s;
  if (reading.rule == PlaneRule::everything) return {};
  if (Policy::projects && (PlaneCodec<K> || PlaneCodec<V>)) {
    return error(StatusCode::unsupported,
                 "terse::attend: planes of latents are read whole: what a tolerance would bound is "
                 "not the output; use PlaneRule::everything");
  }
  if (reading.rule == PlaneRule::tolerance) return {};
  if ((PlaneCodec<K> && !ExponentPlanes<K>) || (PlaneCodec<V> && !ExponentPlanes<V>)) {
    return error(StatusCode::unsupported,
                 "terse::attend: PlaneRule::exponents is for planes of fp16 numbers; use "
                 "PlaneRule::tolerance");
  }
  return {};
}

[[nodiscard]] inline Status check_strides(std::int64_t row_stride, std::int64_t head_stride,
                                          std::int64_t rows, int heads, int channels) noexcept {
  if ((heads > 1 && head_stride < channels) || (rows > 1 && row_stride < channels)) {
    return error(StatusCode::invalid_argument, "terse::attend: a stride is smaller than a vector");
  }
  return {};
}

/// What can be wrong with parts, queries and parameters.
template <class Ref>
[[nodiscard]] Status check_queries(const Ref& r, const AttendInputs& in,
                                   const AttendParams& params) noexcept {
  if (in.parts.empty() || in.parts.size() > static_cast<std::size_t>(r.shape.sequences)) {
    return error(StatusCode::invalid_argument, "terse::attend: between 1 and max_sequences parts",
                 static_cast<std::int64_t>(in.parts.size()));
  }
  if (in.queries.data == nullptr) {
    return error(StatusCode::null_pointer, "terse::attend: queries are null");
  }
  std::int64_t rows = 0;
  for (const StepPart& part : in.parts) {
    const int i = part.sequence.index;
    if (i < 0 || i >= r.shape.sequences || r.sequences[i].alive == 0 ||
        r.sequences[i].generation != part.sequence.generation) {
      return error(StatusCode::stale_sequence, "terse::attend: a handle names no living sequence",
                   i);
    }
    if (r.sequences[i].pending_tokens > 0 && r.was_appended(i) == 0) {
      return error(StatusCode::wrong_phase,
                   "terse::attend: this step's tokens are not yet appended to the layer's slot", i);
    }
    if (part.tokens < 1 || part.tokens > r.shape.max_step_tokens) {
      return error(StatusCode::invalid_argument,
                   "terse::attend: rows of a part must be in 1..max_step_tokens", part.tokens);
    }
    // Rows of a sequence without tokens see nothing, like those whose tokens are all evicted.
    if (part.tokens > r.visible_tokens(i) && r.visible_tokens(i) > 0) {
      return error(StatusCode::invalid_argument,
                   "terse::attend: more rows than the sequence has tokens", part.tokens);
    }
    if (misses_exact_copies(r, i, r.visible_tokens(i) - part.tokens, params)) {
      return error(
          StatusCode::would_be_lossy,
          "terse::attend: the oldest row must read tokens exactly whose exact copies later "
          "steps or compact have taken; attend to a step's rows before those",
          part.tokens);
    }
    rows += part.tokens;
  }
  if (Status s = check_strides(in.queries.row_stride, in.queries.head_stride, rows,
                               r.shape.query_heads, r.shape.head_dim);
      !s.ok()) {
    return s;
  }
  if (params.latent_output && !Ref::policy::projects) {
    return error(StatusCode::invalid_argument,
                 "terse::attend: latent_output needs a policy with a projector");
  }
  if (params.sliding_window_tokens > 0 && Ref::policy::reindex == Reindex::cache_index) {
    return error(StatusCode::unsupported,
                 "terse::attend: a sliding window counts positions of the text, cache-index "
                 "positions do not; use the evictor's window");
  }
  if (Status s = check_planes<typename Ref::policy>(params.planes); !s.ok()) return s;
  for (int head = 0; params.sink_logits != nullptr && head < r.shape.query_heads; ++head) {
    if (!(params.sink_logits[head] < INFINITY)) {
      return error(StatusCode::invalid_argument,
                   "terse::attend: a sink logit is NaN or +infinity; detail: its head", head);
    }
  }
  const auto is_bad = [](float x) { return !(x >= 0.0f) || !is_finite(x); };
  if (is_bad(params.softmax_scale) || is_bad(params.logit_soft_cap) ||
      params.sliding_window_tokens < 0) {
    return error(StatusCode::invalid_argument,
                 "terse::attend: softmax_scale, logit_soft_cap and sliding_window_tokens must be "
                 "finite and not negative");
  }
  return {};
}

template <class Ref>
[[nodiscard]] Status check_attend(const Ref& r, const AttendInputs& in, const AttendOutputs& out,
                                  const AttendParams& params) noexcept {
  if (Status s = check_queries(r, in, params); !s.ok()) return s;
  if (out.output.data == nullptr) {
    return error(StatusCode::null_pointer, "terse::attend: the output is null");
  }
  std::int64_t rows = 0;
  for (const StepPart& part : in.parts) rows += part.tokens;
  return check_strides(out.output.row_stride, out.output.head_stride, rows, r.shape.query_heads,
                       params.latent_output ? r.shape.value_width : r.shape.head_dim);
}

}  // namespace detail
}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
