#pragma once

#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "../model/gguf_builder.hpp"
#include "../model/random_values.hpp"
#include "model/gguf.hpp"
#include "model/llama.hpp"

namespace terse_test {

/// The GGUF file of a random Llama model of two layers, with heads that every codec can store.
struct SmallShape {
  int layers = 2;
  int hidden = 192;
  int query_heads = 6;
  int kv_heads = 2;
  int head_dim = 64;
  int ffn = 64;
  int vocabulary = 90;
  int context_tokens = 4096;
};

inline terse::examples::GgufFile small_model_file(const SmallShape& s = {}) {
  RandomValues random(17);
  GgufBuilder builder;
  const auto count = [](int n) { return static_cast<std::uint32_t>(n); };
  builder.text("general.architecture", "llama")
      .integer("llama.block_count", count(s.layers))
      .integer("llama.context_length", count(s.context_tokens))
      .integer("llama.embedding_length", count(s.hidden))
      .integer("llama.feed_forward_length", count(s.ffn))
      .integer("llama.attention.head_count", count(s.query_heads))
      .integer("llama.attention.head_count_kv", count(s.kv_heads))
      .integer("llama.attention.key_length", count(s.head_dim))
      .integer("llama.rope.dimension_count", count(s.head_dim))
      .real("llama.attention.layer_norm_rms_epsilon", 1e-5f)
      .real("llama.rope.freq_base", 10000.0f);
  const auto matrix = [&](const std::string& name, int in, int out, float gain = 1.5f) {
    builder.tensor(name, {std::uint64_t(in), std::uint64_t(out)},
                   random.vector(static_cast<std::size_t>(in) * static_cast<std::size_t>(out),
                                 gain / std::sqrt(static_cast<float>(in))));
  };
  const auto norm = [&](const std::string& name) {
    builder.tensor(name, {std::uint64_t(s.hidden)},
                   random.vector(static_cast<std::size_t>(s.hidden), 0.5f, 1.0f));
  };
  matrix("token_embd.weight", s.hidden, s.vocabulary);
  norm("output_norm.weight");
  for (int i = 0; i < s.layers; ++i) {
    const std::string prefix = "blk." + std::to_string(i) + ".";
    norm(prefix + "attn_norm.weight");
    norm(prefix + "ffn_norm.weight");
    matrix(prefix + "attn_q.weight", s.hidden, s.query_heads * s.head_dim);
    matrix(prefix + "attn_k.weight", s.hidden, s.kv_heads * s.head_dim);
    matrix(prefix + "attn_v.weight", s.hidden, s.kv_heads * s.head_dim);
    matrix(prefix + "attn_output.weight", s.query_heads * s.head_dim, s.hidden);
    matrix(prefix + "ffn_gate.weight", s.hidden, s.ffn);
    matrix(prefix + "ffn_up.weight", s.hidden, s.ffn);
    matrix(prefix + "ffn_down.weight", s.ffn, s.hidden);
  }
  return terse::examples::GgufFile::from_bytes(builder.build(), "small.gguf");
}

inline std::vector<std::int32_t> random_tokens(int count, int vocabulary, std::uint64_t seed) {
  RandomValues random(seed);
  std::vector<std::int32_t> tokens;
  for (int i = 0; i < count; ++i) {
    const float share = 0.5f + 0.5f * random.next();
    tokens.push_back(static_cast<std::int32_t>(share * static_cast<float>(vocabulary)) %
                     vocabulary);
  }
  return tokens;
}

inline double relative_l2(const std::vector<float>& a, const std::vector<float>& b) {
  double difference = 0, norm = 0;
  for (std::size_t i = 0; i < b.size(); ++i) {
    difference += std::pow(double{a[i]} - double{b[i]}, 2);
    norm += std::pow(double{b[i]}, 2);
  }
  return std::sqrt(difference / norm);
}

}  // namespace terse_test
