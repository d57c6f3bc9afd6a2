#include "llama.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <functional>
#include <set>
#include <stdexcept>
#include <utility>

#include "input_error.hpp"
#include "matmul.hpp"
#include "quoted.hpp"

namespace terse::examples {
namespace {

std::size_t size(int count) { return static_cast<std::size_t>(count); }

[[noreturn]] void refuse(const GgufFile& file, const std::string& what) {
  throw InputError(file.path() + ": " + what);
}

/// A count from the metadata; 2^24 bounds every product of two of them to 64 bits.
int count(const GgufFile& file, const std::string& key, std::optional<int> fallback = {}) {
  const int value = file.integer(key, fallback);
  if (value < 1 || value > (1 << 24)) {
    refuse(file, "metadata " + quoted(key) + " is " + std::to_string(value));
  }
  return value;
}

/// Hands out the tensors of a file and remembers them, so that one nobody asked for is noticed.
class WeightReader {
 public:
  WeightReader(const GgufFile& file, ThreadPool& pool) : file_(file), pool_(pool) {}

  [[nodiscard]] std::vector<float> read(const std::string& name,
                                        const std::vector<std::size_t>& shape) {
    const GgufTensor& tensor = file_.tensor(name);
    if (tensor.shape != shape) {
      refuse(file_, "tensor " + quoted(name) + " is " + text(tensor.shape) + " where " +
                        text(shape) + " is needed");
    }
    used_.insert(name);
    const BlockSize block = block_size(tensor.type);
    const std::size_t blocks = tensor.bytes.size() / block.bytes;
    const std::size_t stretch = 65536 / block.elements;
    std::vector<float> values(tensor.elements);
    pool_.parallel_for(static_cast<int>((blocks + stretch - 1) / stretch), [&](int index) {
      const std::size_t first = size(index) * stretch;
      const std::size_t taken = std::min(stretch, blocks - first);
      const std::span<float> part =
          std::span(values).subspan(first * block.elements, taken * block.elements);
      dequantize(tensor.type, tensor.bytes.subspan(first * block.bytes, taken * block.bytes), part);
      if (!std::all_of(part.begin(), part.end(),
                       [](float value) { return std::isfinite(value); })) {
        refuse(file_, "tensor " + quoted(name) + " holds values that are not finite");
      }
    });
    return values;
  }

  void refuse_unused() const {
    for (const auto& [name, tensor] : file_.tensors()) {
      if (!used_.contains(name)) {
        refuse(file_,
               "tensor " + quoted(name) + " has no place in the Llama architecture known here");
      }
    }
  }

 private:
  static std::string text(const std::vector<std::size_t>& shape) {
    std::string joined = "[";
    for (const std::size_t extent : shape) {
      joined += (joined.size() > 1 ? ", " : "") + std::to_string(extent);
    }
    return joined + "]";
  }

  const GgufFile& file_;
  ThreadPool& pool_;
  std::set<std::string> used_;
};

std::vector<double> rope_frequencies(const GgufFile& file, const LlamaConfig& config,
                                     WeightReader& weights) {
  const float base = file.real("llama.rope.freq_base", 10000.0f);
  const std::string scaling = file.text("llama.rope.scaling.type", "none");
  double position_factor = 1;
  if (scaling == "linear") {
    position_factor = 1 / static_cast<double>(file.real("llama.rope.scaling.factor"));
  } else if (scaling != "none") {
    refuse(file, "RoPE scaling " + quoted(scaling) + " is not supported");
  } else if (file.has("llama.rope.scale_linear")) {
    refuse(file, "metadata \"llama.rope.scale_linear\" is not supported");
  }
  if (!(base > 0) || !(position_factor > 0) || !std::isfinite(position_factor)) {
    refuse(file, "the RoPE base or scaling factor is not positive");
  }
  const int pairs = config.rope_dim / 2;
  std::vector<double> frequencies(size(pairs));
  for (int i = 0; i < pairs; ++i) {
    frequencies[size(i)] =
        position_factor * std::pow(static_cast<double>(base), -2.0 * i / config.rope_dim);
  }
  if (file.find_tensor("rope_freqs.weight") != nullptr) {
    const std::vector<float> divisors = weights.read("rope_freqs.weight", {size(pairs)});
    for (int i = 0; i < pairs; ++i) {
      if (!(divisors[size(i)] > 0)) {
        refuse(file, "tensor \"rope_freqs.weight\" is not positive");
      }
      frequencies[size(i)] /= static_cast<double>(divisors[size(i)]);
    }
  }
  return frequencies;
}

LlamaConfig read_config(const GgufFile& file) {
  const std::string architecture = file.text("general.architecture");
  if (architecture != "llama") {
    refuse(file, "architecture " + quoted(architecture) + " is not supported; only \"llama\" is");
  }
  LlamaConfig config;
  config.name = file.text("general.name", "unnamed");
  config.layers = count(file, "llama.block_count");
  config.hidden = count(file, "llama.embedding_length");
  config.query_heads = count(file, "llama.attention.head_count");
  config.kv_heads = count(file, "llama.attention.head_count_kv", config.query_heads);
  config.ffn = count(file, "llama.feed_forward_length");
  config.context_tokens = count(file, "llama.context_length");
  config.rms_epsilon = file.real("llama.attention.layer_norm_rms_epsilon");
  if (config.query_heads % config.kv_heads != 0) {
    refuse(file, "the query heads are no multiple of the KV heads");
  }
  if (file.has("llama.attention.key_length")) {
    config.head_dim = count(file, "llama.attention.key_length");
  } else if (config.hidden % config.query_heads == 0) {
    config.head_dim = config.hidden / config.query_heads;
  } else {
    refuse(file, "the channels are no multiple of the query heads");
  }
  if (count(file, "llama.attention.value_length", config.head_dim) != config.head_dim) {
    refuse(file, "values with another head dimension than keys are not supported");
  }
  if (std::int64_t{config.query_heads} * config.head_dim > (1 << 24)) {
    refuse(file, "the heads have too many channels");
  }
  config.rope_dim = count(file, "llama.rope.dimension_count", config.head_dim);
  if (config.rope_dim % 2 != 0 || config.rope_dim > config.head_dim) {
    refuse(file, "the RoPE dimension does not fit the head dimension");
  }
  if (file.has("llama.expert_count") && file.integer("llama.expert_count") != 0) {
    refuse(file, "mixtures of experts are not supported");
  }
  const GgufTensor& embedding = file.tensor("token_embd.weight");
  if (embedding.shape.size() != 2 || embedding.shape[0] > (1u << 24)) {
    refuse(file, "tensor \"token_embd.weight\" is not a matrix of token embeddings");
  }
  config.vocabulary = static_cast<int>(embedding.shape[0]);
  return config;
}

LlamaLayer read_layer(WeightReader& weights, const LlamaConfig& config, int index) {
  const std::size_t hidden = size(config.hidden);
  const std::size_t ffn = size(config.ffn);
  const std::size_t q_channels = size(config.query_heads) * size(config.head_dim);
  const std::size_t kv_channels = size(config.kv_heads) * size(config.head_dim);
  const std::string prefix = "blk." + std::to_string(index) + ".";
  LlamaLayer layer;
  layer.attention_norm = weights.read(prefix + "attn_norm.weight", {hidden});
  layer.w_q = weights.read(prefix + "attn_q.weight", {q_channels, hidden});
  layer.w_k = weights.read(prefix + "attn_k.weight", {kv_channels, hidden});
  layer.w_v = weights.read(prefix + "attn_v.weight", {kv_channels, hidden});
  layer.w_o = weights.read(prefix + "attn_output.weight", {hidden, q_channels});
  layer.ffn_norm = weights.read(prefix + "ffn_norm.weight", {hidden});
  layer.w_gate = weights.read(prefix + "ffn_gate.weight", {ffn, hidden});
  layer.w_up = weights.read(prefix + "ffn_up.weight", {ffn, hidden});
  layer.w_down = weights.read(prefix + "ffn_down.weight", {hidden, ffn});
  return layer;
}

}  // namespace

LlamaModel LlamaModel::load(const std::string& path, ThreadPool& pool) {
  return load(GgufFile::open(path), pool);
}

LlamaModel LlamaModel::load(const GgufFile& file, ThreadPool& pool) {
  LlamaModel model;
  model.pool_ = &pool;
  model.config_ = read_config(file);
  LlamaConfig& config = model.config_;
  WeightReader weights(file, pool);
  config.rope_frequencies = rope_frequencies(file, config, weights);
  const std::size_t hidden = size(config.hidden);
  const std::size_t vocabulary = size(config.vocabulary);
  model.embedding_ = weights.read("token_embd.weight", {vocabulary, hidden});
  model.output_norm_ = weights.read("output_norm.weight", {hidden});
  if (file.find_tensor("output.weight") != nullptr) {
    model.output_ = weights.read("output.weight", {vocabulary, hidden});
  }
  for (int i = 0; i < config.layers; ++i) {
    model.layers_.push_back(read_layer(weights, config, i));
  }
  weights.refuse_unused();
  return model;
}

std::size_t LlamaModel::checked(int layer) const {
  if (layer < 0 || layer >= config_.layers) {
    throw std::invalid_argument("LlamaModel: no such layer");
  }
  return size(layer);
}

int LlamaModel::rows(std::size_t values, int width) const {
  if (values % size(width) != 0 || values / size(width) > (1u << 24)) {
    throw std::invalid_argument("LlamaModel: the size is no multiple of a token's channels");
  }
  return static_cast<int>(values / size(width));
}

void LlamaModel::set_key_bias(int layer, std::vector<float> bias) {
  if (bias.size() != size(config_.kv_heads) * size(config_.head_dim)) {
    throw std::invalid_argument("LlamaModel: a bias of another size than the keys");
  }
  layers_[checked(layer)].b_k = std::move(bias);
}

void LlamaModel::multiply(const float* x, int rows, const float* w, int in, int out,
                          float* y) const {
  if (products_ != nullptr) {
    products_->multiply(x, rows, w, in, out, y);
  } else {
    matmul(*pool_, x, rows, w, in, out, y);
  }
}

std::vector<float> LlamaModel::product(std::span<const float> x, std::span<const float> w, int in,
                                       int out) const {
  const int tokens = rows(x.size(), in);
  std::vector<float> y(size(tokens) * size(out));
  multiply(x.data(), tokens, w.data(), in, out, y.data());
  return y;
}

std::vector<float> LlamaModel::normalise(std::span<const float> x,
                                         std::span<const float> weight) const {
  const std::size_t hidden = size(config_.hidden);
  std::vector<float> normed(x.size());
  pool_->parallel_for(rows(x.size(), config_.hidden), [&](int token) {
    const float* in = x.data() + size(token) * hidden;
    float* out = normed.data() + size(token) * hidden;
    double squares = 0;
    for (std::size_t i = 0; i < hidden; ++i) {
      squares += static_cast<double>(in[i]) * static_cast<double>(in[i]);
    }
    const double mean = squares / static_cast<double>(hidden);
    const float factor =
        static_cast<float>(1 / std::sqrt(mean + static_cast<double>(config_.rms_epsilon)));
    for (std::size_t i = 0; i < hidden; ++i) {
      out[i] = in[i] * factor * weight[i];
    }
  });
  return normed;
}

std::vector<float> LlamaModel::embed(std::span<const std::int32_t> tokens) const {
  const std::size_t hidden = size(config_.hidden);
  std::vector<float> x;
  x.reserve(tokens.size() * hidden);
  for (const std::int32_t token : tokens) {
    if (token < 0 || token >= config_.vocabulary) {
      throw InputError("token " + std::to_string(token) + " is outside the model's vocabulary");
    }
    const float* row = embedding_.data() + size(token) * hidden;
    x.insert(x.end(), row, row + hidden);
  }
  return x;
}

std::vector<float> LlamaModel::attention_inputs(int layer, std::span<const float> x) const {
  return normalise(x, layers_[checked(layer)].attention_norm);
}

Qkv LlamaModel::qkv(int layer, std::span<const float> normed, int first_position, Rope query_rope,
                    Rope key_rope) const {
  const LlamaLayer& weights = layers_[checked(layer)];
  const int q_channels = config_.query_heads * config_.head_dim;
  const int kv_channels = config_.kv_heads * config_.head_dim;
  Qkv result;
  result.q = product(normed, weights.w_q, config_.hidden, q_channels);
  result.k = product(normed, weights.w_k, config_.hidden, kv_channels);
  result.v = product(normed, weights.w_v, config_.hidden, kv_channels);
  if (!weights.b_k.empty()) {
    for (std::size_t i = 0; i < result.k.size(); ++i) {
      result.k[i] += weights.b_k[i % size(kv_channels)];
    }
  }
  if (query_rope == Rope::applied) {
    apply_rope(result.q, config_.query_heads, first_position);
  }
  if (key_rope == Rope::applied) {
    apply_rope(result.k, config_.kv_heads, first_position);
  }
  return result;
}

void LlamaModel::apply_rope(std::span<float> vectors, int heads, int first_position) const {
  if (heads < 1 || first_position < 0) {
    throw std::invalid_argument("LlamaModel: impossible head count or position");
  }
  const std::size_t head_dim = size(config_.head_dim);
  const std::size_t pairs = config_.rope_frequencies.size();
  const bool interleaved = config_.rope_pairing == RopePairing::interleaved;
  pool_->parallel_for(rows(vectors.size(), heads * config_.head_dim), [&](int token) {
    float* row = vectors.data() + size(token) * size(heads) * head_dim;
    for (std::size_t pair = 0; pair < pairs; ++pair) {
      const double angle =
          (static_cast<double>(first_position) + token) * config_.rope_frequencies[pair];
      const float cosine = static_cast<float>(std::cos(angle));
      const float sine = static_cast<float>(std::sin(angle));
      const std::size_t first = interleaved ? 2 * pair : pair;
      const std::size_t second = interleaved ? first + 1 : first + pairs;
      for (std::size_t head = 0; head < size(heads); ++head) {
        float* vector = row + head * head_dim;
        const float a = vector[first];
        const float b = vector[second];
        vector[first] = a * cosine - b * sine;
        vector[second] = a * sine + b * cosine;
      }
    }
  });
}

void LlamaModel::finish_layer(int layer, std::span<float> x,
                              std::span<const float> attention) const {
  const LlamaLayer& weights = layers_[checked(layer)];
  const int q_channels = config_.query_heads * config_.head_dim;
  if (rows(attention.size(), q_channels) != rows(x.size(), config_.hidden)) {
    throw std::invalid_argument("LlamaModel: x and attention have different token counts");
  }
  const auto add = [x](const std::vector<float>& increment) {
    std::transform(x.begin(), x.end(), increment.begin(), x.begin(), std::plus<>{});
  };
  add(product(attention, weights.w_o, q_channels, config_.hidden));
  const std::vector<float> normed = normalise(x, weights.ffn_norm);
  std::vector<float> gate = product(normed, weights.w_gate, config_.hidden, config_.ffn);
  const std::vector<float> up = product(normed, weights.w_up, config_.hidden, config_.ffn);
  pool_->parallel_for(rows(gate.size(), config_.ffn), [&](int token) {
    const std::size_t begin = size(token) * size(config_.ffn);
    silu_multiply(gate.data() + begin, up.data() + begin, config_.ffn);
  });
  add(product(gate, weights.w_down, config_.ffn, config_.hidden));
}

std::vector<float> LlamaModel::logits(std::span<const float> x) const {
  return product(normalise(x, output_norm_), output_.empty() ? embedding_ : output_, config_.hidden,
                 config_.vocabulary);
}

}  // namespace terse::examples
