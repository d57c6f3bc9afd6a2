/// Attention in double precision, one number at a time: the oracle that fast paths are tested
/// against. It reads the same blocks through `decode` and shares no inner loop with them.
#pragma once

#include <cmath>
#include <vector>

#include "terse/cache/attention.hpp"
#include "terse/config.hpp"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {
namespace testing {

namespace detail {

/// Where a token is read: encoded in its block, in the tail, or in the sinks.
enum class TokenSource { encoded, tail, sinks };

/// One stored stream of a token in double, out of the codec's basis.
template <class CodecPart, class TailForm>
void load_vector(const CodecContext& context, const std::byte* base, TokenSource source, int token,
                 std::vector<double>* out) {
  std::vector<float> x(static_cast<std::size_t>(context.width));
  for (int c = 0; c < context.width; ++c) {
    x[static_cast<std::size_t>(c)] =
        source == TokenSource::encoded ? CodecPart::decode(context, base, token, c)
        : source == TokenSource::tail  ? TailForm::decode(context, base, token, c)
                                       : Identity::load(context, base, sink_block_tokens, token, c);
  }
  // The basis is linear: turning the fp32 vector back costs about 1e-7, below every tolerance.
  from_basis<CodecPart>(context, x.data());
  out->assign(x.begin(), x.end());
}

inline void rotate_exactly(const RopeSpec& rope, double positions, std::vector<double>* x) {
  for (int i = 0; i < rope.rotary_dim / 2; ++i) {
    const double angle = positions * rope.inverse_frequency(i);
    double& a = (*x)[static_cast<std::size_t>(rope.first_channel(i))];
    double& b = (*x)[static_cast<std::size_t>(rope.second_channel(i))];
    const double u = a, v = b;
    a = u * std::cos(angle) - v * std::sin(angle);
    b = u * std::sin(angle) + v * std::cos(angle);
  }
}

}  // namespace detail

/// As terse::cpu::attend, slowly. `lse_ln` and `column_sums` of `out` may be null.
template <class Ref>
Status attend(const Ref& r, const AttendInputs& in, const AttendOutputs& out,
              const AttendParams& params = {}) {
  using Policy = typename Ref::policy;
  using TailForm = typename Policy::tail_codec;
  if (Status s = terse::detail::check_attend(r, in, out, params); !s.ok()) return s;
  const ClassShape& shape = r.shape;
  const double scale =
      params.softmax_scale > 0 ? params.softmax_scale : 1.0 / std::sqrt(double{} + shape.head_dim);
  const int group = shape.query_heads / shape.kv_heads;
  const int out_channels = params.latent_output ? shape.value_width : shape.head_dim;
  if (out.column_sums != nullptr) {
    const std::size_t floats = in.parts.size() * static_cast<std::size_t>(shape.unit.units) *
                               static_cast<std::size_t>(shape.entries) * block_tokens;
    for (std::size_t i = 0; i < floats; ++i) out.column_sums[i] = 0.0f;
  }
  std::int64_t row0 = 0;
  for (std::size_t part = 0; part < in.parts.size(); ++part) {
    const int sequence = in.parts[part].sequence.index;
    const int rows = in.parts[part].tokens;
    for (int row = 0; row < rows; ++row) {
      const std::int64_t position = r.visible_tokens(sequence) - rows + row;
      for (int head = 0; head < shape.query_heads; ++head) {
        const int kv_head = head / group;
        const int unit = kv_head / shape.unit.heads_per_unit;
        const int in_unit = kv_head % shape.unit.heads_per_unit;
        const int key_stream = in_unit / shape.unit.key_heads_per_stream;
        const int value_stream = in_unit / shape.unit.value_heads_per_stream;
        const CodecContext key = r.context(Side::key, unit, key_stream);
        const CodecContext value = r.context(Side::value, unit, value_stream);
        std::vector<float> q(static_cast<std::size_t>(shape.head_dim));
        in.queries.load(row0 + row, head, shape.head_dim, q.data());
        std::vector<double> query(q.begin(), q.end()), turned = query;
        const std::int64_t shift = terse::detail::prefix_shift(r, sequence, unit, position);
        detail::rotate_exactly(r.rope, static_cast<double>(shift), &turned);

        struct Seen {
          int entry, token;
          double logit;
          std::vector<double> value;
        };
        std::vector<Seen> seen;
        const auto visit = [&](int entry, int token, std::int64_t token_position,
                               const std::byte* keys, const std::byte* values,
                               detail::TokenSource source, int place) {
          std::vector<double> k;
          detail::load_vector<typename Policy::key_codec, TailForm>(key, keys, source, place, &k);
          if constexpr (Policy::projects) {
            std::vector<double> full(static_cast<std::size_t>(shape.head_dim), 0.0);
            for (int c = 0; c < shape.head_dim; ++c) {
              const float* up = r.factors.key_up + (static_cast<std::size_t>(kv_head) *
                                                        static_cast<std::size_t>(shape.head_dim) +
                                                    static_cast<std::size_t>(c)) *
                                                       static_cast<std::size_t>(shape.key_width);
              for (int j = 0; j < shape.key_width; ++j) {
                full[static_cast<std::size_t>(c)] += double{up[j]} * k[static_cast<std::size_t>(j)];
              }
            }
            k = full;
            detail::rotate_exactly(r.rope, static_cast<double>(token_position), &k);
          }
          const auto& effective = token_position < terse::detail::prefix_end(r) ? turned : query;
          double logit = 0;
          for (std::size_t c = 0; c < k.size(); ++c) logit += effective[c] * k[c];
          logit *= scale;
          if (params.logit_soft_cap > 0) {
            logit = params.logit_soft_cap * std::tanh(logit / params.logit_soft_cap);
          }
          Seen one{entry, token, logit, {}};
          detail::load_vector<typename Policy::value_codec, TailForm>(value, values, source, place,
                                                                      &one.value);
          seen.push_back(one);
        };
        for (int e = 0; e < r.entry_count(sequence, r.row_of_unit(unit)); ++e) {
          for (int t = 0; t < block_tokens; ++t) {
            if ((r.live_mask(sequence, unit, e) >> t & 1u) == 0) continue;
            const std::int64_t p = r.position(sequence, unit, e, t);
            if (params.causal && p > position) continue;
            if (params.sliding_window_tokens > 0 && p <= position - params.sliding_window_tokens) {
              continue;
            }
            const bool tail = !shape.open && p >= r.grids[sequence].exact_begin &&
                              p >= r.sealed_before(sequence, position);
            if (tail) {
              const std::byte* base =
                  r.tail_block(sequence, unit, r.first_position(sequence, unit, e));
              visit(e, t, p, base + shape.tail_offset(Side::key, key_stream),
                    base + shape.tail_offset(Side::value, value_stream), detail::TokenSource::tail,
                    t);
            } else if (p < shape.tail.sink_tokens) {
              const std::byte* base = r.sink_block(sequence, unit);
              visit(e, t, p, base + shape.sink_offset(Side::key, key_stream),
                    base + shape.sink_offset(Side::value, value_stream), detail::TokenSource::sinks,
                    static_cast<int>(p));
            } else {
              const std::byte* base = r.block(sequence, unit, e);
              visit(e, t, p, base + shape.key_offset(key_stream),
                    base + shape.value_offset(value_stream), detail::TokenSource::encoded, t);
            }
          }
        }
        const double sink = params.sink_logits == nullptr ? -INFINITY : params.sink_logits[head];
        const bool sees_nothing = seen.empty() && sink == -INFINITY;
        double high = sink;
        for (const Seen& s : seen) high = s.logit > high ? s.logit : high;
        double sum = sink == -INFINITY ? 0 : std::exp(sink - high);
        for (const Seen& s : seen) sum += std::exp(s.logit - high);
        std::vector<double> mean(static_cast<std::size_t>(shape.value_width), 0.0);
        for (const Seen& s : seen) {
          const double p = std::exp(s.logit - high) / sum;
          for (std::size_t c = 0; c < mean.size(); ++c) mean[c] += p * s.value[c];
          if (out.column_sums != nullptr) {
            out.column_sums[((part * static_cast<std::size_t>(shape.unit.units) +
                              static_cast<std::size_t>(unit)) *
                                 static_cast<std::size_t>(shape.entries) +
                             static_cast<std::size_t>(s.entry)) *
                                block_tokens +
                            static_cast<std::size_t>(s.token)] += static_cast<float>(p);
          }
        }
        std::vector<float> result(static_cast<std::size_t>(out_channels), 0.0f);
        for (int c = 0; c < out_channels; ++c) {
          if constexpr (Policy::projects) {
            if (!params.latent_output) {
              const float* up =
                  r.factors.value_up +
                  (static_cast<std::size_t>(kv_head) * static_cast<std::size_t>(shape.head_dim) +
                   static_cast<std::size_t>(c)) *
                      static_cast<std::size_t>(shape.value_width);
              double x = 0;
              for (std::size_t j = 0; j < mean.size(); ++j) x += up[j] * mean[j];
              result[static_cast<std::size_t>(c)] = static_cast<float>(x);
              continue;
            }
          }
          result[static_cast<std::size_t>(c)] =
              static_cast<float>(mean[static_cast<std::size_t>(c)]);
        }
        out.output.store(row0 + row, head, out_channels, result.data());
        if (out.lse_ln != nullptr) {
          out.lse_ln[(row0 + row) * shape.query_heads + head] =
              sees_nothing ? -INFINITY : static_cast<float>(high + std::log(sum));
        }
      }
    }
    row0 += rows;
  }
  return {};
}

}  // namespace testing
}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
