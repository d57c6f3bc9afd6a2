/// From the states of items to outputs, log-sum-exps and column sums.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "terse/cache/attention.hpp"
#include "terse/config.hpp"
#include "terse/cpu/attend_call.hpp"
#include "terse/cpu/attend_items.hpp"
#include "terse/cpu/basis.hpp"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {
namespace cpu {

namespace detail {

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
  if (call.out.bytes_read != nullptr) {
    BytesRead& total = call.out.bytes_read[part * static_cast<std::size_t>(shape.unit.units) +
                                           static_cast<std::size_t>(unit)];
    for (int split = 0; split < p.splits; ++split) total += *at_split(items, s.bytes, split);
  }
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
            call.table, call.r.context(Side::value, unit, h / shape.unit.value_heads_per_stream),
            mean);
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

}  // namespace cpu
}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
