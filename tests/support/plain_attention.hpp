/// Attention of the plain model, in double.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "support/plain_model.hpp"

namespace terse::tests {

struct PlainAttended {
  std::vector<double> output;  ///< `[row, query_head, channel]`
  std::vector<double> lse_ln;  ///< `[row, query_head]`
};

inline void turn(const RopeSpec& rope, double positions, std::vector<double>& x) {
  for (int i = 0; i < rope.rotary_dim / 2; ++i) {
    const double angle =
        positions * std::pow(rope.base, -2.0 * i / rope.rotary_dim) / rope.linear_scale;
    const bool split = rope.pairing == RopePairing::half_split;
    const auto a = static_cast<std::size_t>(split ? i : 2 * i);
    const auto b = static_cast<std::size_t>(split ? i + rope.rotary_dim / 2 : 2 * i + 1);
    const double u = x[a], v = x[b];
    x[a] = u * std::cos(angle) - v * std::sin(angle);
    x[b] = u * std::sin(angle) + v * std::cos(angle);
  }
}

template <class CodecPart>
std::vector<double> out_of_basis(Side side, const std::vector<float>& streams, int stream,
                                 int width) {
  std::vector<float> x(streams.begin() + stream * width, streams.begin() + (stream + 1) * width);
  from_basis<CodecPart>(CodecContext{side, width}, x.data());
  return {x.begin(), x.end()};
}

/// Rows are the newest `rows` positions of the sequence; `queries [row, query_head, head_dim]`
/// after RoPE. `up`: factors of the slot, for latents.
template <Layout L, class Policy>
PlainAttended plain_attend(const PlainModel<L, Policy>& model, int sequence, int slot, int rows,
                           const float* queries, const RopeSpec& rope,
                           const ProjectionFactors& up = {}, int sliding_window_tokens = 0) {
  const ClassShape& shape = model.shape();
  const PlainSequence& s = model.sequence(sequence);
  const auto head_dim = static_cast<std::size_t>(shape.head_dim);
  const int group = shape.query_heads / shape.kv_heads;
  const auto project = [&](const float* factor, int kv_head, int rank,
                           const std::vector<double>& latent) {
    std::vector<double> full(head_dim, 0.0);
    for (std::size_t c = 0; c < head_dim; ++c) {
      for (std::size_t j = 0; j < latent.size(); ++j) {
        full[c] += latent[j] * factor[(static_cast<std::size_t>(kv_head) * head_dim + c) *
                                          static_cast<std::size_t>(rank) +
                                      j];
      }
    }
    return full;
  };
  PlainAttended result;
  for (int row = 0; row < rows; ++row) {
    const std::int64_t p = s.length + s.pending - rows + row;
    for (int head = 0; head < shape.query_heads; ++head) {
      const int kv_head = head / group, unit = kv_head / shape.unit.heads_per_unit;
      const int in_unit = kv_head % shape.unit.heads_per_unit;
      const auto& blocks = model.row(sequence, slot, unit / shape.units_per_row);
      const auto in_row = static_cast<std::size_t>(unit % shape.units_per_row);
      std::vector<const PlainToken*> seen;
      std::int64_t visible = 0;
      for (const PlainBlock& b : blocks) {
        for (const PlainToken& t : b.units[in_row]) {
          if (!t.live || t.position > p) continue;
          ++visible;
          if (sliding_window_tokens > 0 && t.position <= p - sliding_window_tokens) continue;
          seen.push_back(&t);
        }
      }
      const float* own =
          queries + static_cast<std::size_t>(row * shape.query_heads + head) * head_dim;
      const std::vector<double> query(own, own + head_dim);
      std::vector<double> logits;
      std::vector<std::vector<double>> values;
      std::int64_t index = 0;  // of the key inside the cache
      for (const PlainToken* t : seen) {
        const bool in_tail = model.in_tail(s, p, t->position);
        const bool in_sinks = t->position < shape.tail.sink_tokens;
        const PlainVectors& stored = *t->data;
        std::vector<double> k = out_of_basis<typename Policy::key_codec>(
            Side::key,
            in_tail    ? stored.tail_keys
            : in_sinks ? stored.sink_keys
                       : stored.keys,
            in_unit / shape.unit.key_heads_per_stream, shape.key_width);
        std::vector<double> v = out_of_basis<typename Policy::value_codec>(
            Side::value,
            in_tail    ? stored.tail_values
            : in_sinks ? stored.sink_values
                       : stored.values,
            in_unit / shape.unit.value_heads_per_stream, shape.value_width);
        std::vector<double> q = query;
        if constexpr (Policy::projects) {
          k = project(up.key_up, kv_head, shape.key_width, k);
          v = project(up.value_up, kv_head, shape.value_width, v);
        }
        if constexpr (Policy::reindex == Reindex::cache_index) {
          // Keys before RoPE, rotated to their place in the cache, as the paper does it.
          if (!Policy::projects) turn(rope, -static_cast<double>(t->position), k);
          turn(rope, static_cast<double>(index), k);
          turn(rope, static_cast<double>(visible - 1 - p), q);
        } else if (Policy::projects) {
          turn(rope, static_cast<double>(t->position), k);
        }
        ++index;
        double logit = 0;
        for (std::size_t c = 0; c < head_dim; ++c) logit += q[c] * k[c];
        logits.push_back(logit / std::sqrt(static_cast<double>(shape.head_dim)));
        values.push_back(std::move(v));
      }
      double high = -INFINITY, sum = 0;
      for (const double x : logits) high = std::max(high, x);
      for (const double x : logits) sum += std::exp(x - high);
      std::vector<double> mean(head_dim, 0.0);
      for (std::size_t i = 0; i < values.size(); ++i) {
        const double weight = std::exp(logits[i] - high) / sum;
        for (std::size_t c = 0; c < head_dim; ++c) mean[c] += weight * values[i][c];
      }
      result.output.insert(result.output.end(), mean.begin(), mean.end());
      result.lse_ln.push_back(logits.empty() ? -INFINITY : high + std::log(sum));
    }
  }
  return result;
}

}  // namespace terse::tests
