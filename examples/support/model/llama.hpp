#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "gguf.hpp"
#include "matmul.hpp"
#include "thread_pool.hpp"

namespace terse::examples {

/// Which channels of a head RoPE turns together: (2 i, 2 i + 1), or (i, i + rope_dim / 2).
enum class RopePairing { interleaved, half_split };

struct LlamaConfig {
  std::string name;
  int layers = 0;
  int hidden = 0;  ///< channels of the residual stream
  int query_heads =
      0;  ///< a multiple of kv_heads; query head h reads KV head h / (query_heads / kv_heads)
  int kv_heads = 0;
  int head_dim = 0;  ///< channels of a head, the same for queries, keys and values
  int ffn = 0;       ///< channels inside the feed-forward part
  int vocabulary = 0;
  int context_tokens = 0;  ///< longest sequence the model was trained for
  float rms_epsilon = 0;
  /// GGUF files of this architecture permute the rows of w_q and w_k for interleaved pairs.
  RopePairing rope_pairing = RopePairing::interleaved;
  int rope_dim = 0;  ///< leading channels of a head that RoPE turns
  /// Radians per token of each channel pair, [rope_dim / 2]; scaling is contained.
  std::vector<double> rope_frequencies;
};

/// The fp32 weights of one layer; matrices are row-major [out, in].
struct LlamaLayer {
  std::vector<float> attention_norm;  ///< [hidden]
  std::vector<float> w_q;             ///< [query_heads * head_dim, hidden]
  std::vector<float> w_k;             ///< [kv_heads * head_dim, hidden]
  std::vector<float> b_k;             ///< [kv_heads * head_dim], or empty: none
  std::vector<float> w_v;             ///< [kv_heads * head_dim, hidden]
  std::vector<float> w_o;             ///< [hidden, query_heads * head_dim]
  std::vector<float> ffn_norm;        ///< [hidden]
  std::vector<float> w_gate;          ///< [ffn, hidden]
  std::vector<float> w_up;            ///< [ffn, hidden]
  std::vector<float> w_down;          ///< [hidden, ffn]
};

/// Whether vectors are turned to their positions or left as projected.
enum class Rope { applied, none };

struct Qkv {
  std::vector<float> q;  ///< [token, query head, channel]
  std::vector<float> k;  ///< [token, KV head, channel]
  std::vector<float> v;  ///< [token, KV head, channel]
};

/// A Llama model whose attention is left to the caller, so that any KV cache can stand in its
/// place.
///
/// All tokens of a window may go through one layer before the next one starts:
///
///     x = model.embed(tokens)
///     for each layer:  qkv = model.qkv(layer, model.attention_inputs(layer, x), first_position)
///                      attention = ... qkv and the cache ...
///                      model.finish_layer(layer, x, attention)
///     logits = model.logits(x)
///
/// Everything is fp32; results do not depend on the pool's thread count. Member functions throw
/// std::invalid_argument where a span's size does not fit.
class LlamaModel {
 public:
  /// Dequantises the weights of a GGUF file of architecture "llama"; `pool` must outlive the model.
  /// Throws InputError for any other architecture, a missing, misshapen, non-finite or unknown
  /// tensor, and RoPE scaling that is not implemented (linear and rope_freqs are).
  [[nodiscard]] static LlamaModel load(const GgufFile& file, ThreadPool& pool);
  [[nodiscard]] static LlamaModel load(const std::string& path, ThreadPool& pool);

  [[nodiscard]] const LlamaConfig& config() const { return config_; }
  [[nodiscard]] const LlamaLayer& layer(int index) const { return layers_.at(checked(index)); }
  [[nodiscard]] ThreadPool& pool() const { return *pool_; }
  /// Works on `pool` from now on, which must outlive the model or the next use_pool.
  void use_pool(ThreadPool& pool) { pool_ = &pool; }
  /// Multiplies by `products` from now on, which must live as long as the model computes.
  void use_products(MatrixProducts& products) { products_ = &products; }
  /// Adds `bias` [kv_heads * head_dim] to the keys of a layer before RoPE, instead of any there
  /// was. Files of this architecture have none; other models do.
  void set_key_bias(int layer, std::vector<float> bias);
  /// y = x w^T, as matmul.
  void multiply(const float* x, int rows, const float* w, int in, int out, float* y) const;

  /// The residual stream before the first layer, [token, hidden].
  /// Throws InputError for a token outside the vocabulary.
  [[nodiscard]] std::vector<float> embed(std::span<const std::int32_t> tokens) const;

  /// The RMS-normalised input of a layer's projections, [token, hidden], from the residual stream.
  [[nodiscard]] std::vector<float> attention_inputs(int layer, std::span<const float> x) const;

  /// Queries, keys and values of consecutive tokens; the first has position `first_position`.
  [[nodiscard]] Qkv qkv(int layer, std::span<const float> normed, int first_position,
                        Rope query_rope = Rope::applied, Rope key_rope = Rope::applied) const;

  /// Turns `vectors` [token, head, channel] to their positions, in place; any number of heads.
  void apply_rope(std::span<float> vectors, int heads, int first_position) const;

  /// Adds the layer's output projection of `attention` [token, query head, channel] and its
  /// feed-forward part to the residual stream `x` [token, hidden], in place.
  void finish_layer(int layer, std::span<float> x, std::span<const float> attention) const;

  /// The logits [token, vocabulary] of residual streams [token, hidden] after the last layer.
  [[nodiscard]] std::vector<float> logits(std::span<const float> x) const;

 private:
  LlamaModel() = default;
  [[nodiscard]] std::size_t checked(int layer) const;
  [[nodiscard]] int rows(std::size_t values, int width) const;
  [[nodiscard]] std::vector<float> normalise(std::span<const float> x,
                                             std::span<const float> weight) const;
  [[nodiscard]] std::vector<float> product(std::span<const float> x, std::span<const float> w,
                                           int in, int out) const;

  LlamaConfig config_;
  std::vector<LlamaLayer> layers_;
  std::vector<float> embedding_;    // [vocabulary, hidden]
  std::vector<float> output_norm_;  // [hidden]
  std::vector<float> output_;  // [vocabulary, hidden]; empty where the embedding serves as output
  ThreadPool* pool_ = nullptr;
  MatrixProducts* products_ = nullptr;  // null: matmul's
};

}  // namespace terse::examples
