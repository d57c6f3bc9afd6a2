#include "llama.hpp"

#include <cmath>
#include <limits>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

#include "gguf_builder.hpp"
#include "naive_attention.hpp"
#include "random_values.hpp"
#include "reference_attention.hpp"
#include "refusal.hpp"
#include "support/catch.hpp"

using namespace terse::examples;
using terse_test::contains;
using terse_test::GgufBuilder;
using terse_test::RandomValues;
using terse_test::refusal_of;

namespace {

constexpr int layers = 2;
constexpr int hidden = 24;
constexpr int query_heads = 6;
constexpr int kv_heads = 2;
constexpr int head_dim = 4;
constexpr int ffn = 40;
constexpr int vocabulary = 50;

std::size_t size(int count) { return static_cast<std::size_t>(count); }

struct Weight {
  std::vector<std::uint64_t> extents;  // fastest first
  std::vector<float> values;
};

/// A random model; tests change it before it is written.
struct SmallModel {
  std::map<std::string, Weight> weights;
  std::map<std::string, std::uint32_t> integers = {
      {"llama.block_count", layers},
      {"llama.context_length", 64},
      {"llama.embedding_length", hidden},
      {"llama.feed_forward_length", ffn},
      {"llama.attention.head_count", query_heads},
      {"llama.attention.head_count_kv", kv_heads},
      {"llama.rope.dimension_count", head_dim},
  };
  std::map<std::string, float> reals = {{"llama.attention.layer_norm_rms_epsilon", 1e-5f},
                                        {"llama.rope.freq_base", 100.0f}};
  std::map<std::string, std::string> texts = {{"general.architecture", "llama"}};

  SmallModel() {
    RandomValues random(11);
    const auto matrix = [&](const std::string& name, int in, int out) {
      weights[name] = {{std::uint64_t(in), std::uint64_t(out)},
                       random.vector(size(in) * size(out), 2.0f / std::sqrt(float(in)))};
    };
    const auto norm = [&](const std::string& name) {
      weights[name] = {{hidden}, random.vector(hidden, 0.5f, 1.0f)};
    };
    matrix("token_embd.weight", hidden, vocabulary);
    matrix("output.weight", hidden, vocabulary);
    norm("output_norm.weight");
    for (int i = 0; i < layers; ++i) {
      const std::string prefix = "blk." + std::to_string(i) + ".";
      norm(prefix + "attn_norm.weight");
      norm(prefix + "ffn_norm.weight");
      matrix(prefix + "attn_q.weight", hidden, query_heads * head_dim);
      matrix(prefix + "attn_k.weight", hidden, kv_heads * head_dim);
      matrix(prefix + "attn_v.weight", hidden, kv_heads * head_dim);
      matrix(prefix + "attn_output.weight", query_heads * head_dim, hidden);
      matrix(prefix + "ffn_gate.weight", hidden, ffn);
      matrix(prefix + "ffn_up.weight", hidden, ffn);
      matrix(prefix + "ffn_down.weight", ffn, hidden);
    }
  }

  [[nodiscard]] GgufFile file() const {
    GgufBuilder builder;
    for (const auto& [key, value] : texts) {
      builder.text(key, value);
    }
    for (const auto& [key, value] : integers) {
      builder.integer(key, value);
    }
    for (const auto& [key, value] : reals) {
      builder.real(key, value);
    }
    for (const auto& [name, weight] : weights) {
      builder.tensor(name, weight.extents, weight.values);
    }
    return GgufFile::from_bytes(builder.build(), "small.gguf");
  }

  [[nodiscard]] std::string refusal() const {
    ThreadPool pool(1);
    return refusal_of([&] { static_cast<void>(LlamaModel::load(file(), pool)); });
  }
};

/// The model in fp64, from the definitions: RMS norm, interleaved RoPE, causal GQA, SwiGLU.
class NaiveModel {
 public:
  explicit NaiveModel(const SmallModel& model) : model_(model) {}

  std::vector<double> logits(const std::vector<std::int32_t>& tokens) const {
    const std::vector<float>& embedding = values("token_embd.weight");
    std::vector<double> x;
    for (const std::int32_t token : tokens) {
      x.insert(x.end(), embedding.begin() + token * hidden,
               embedding.begin() + (token + 1) * hidden);
    }
    for (int i = 0; i < layers; ++i) {
      const std::string prefix = "blk." + std::to_string(i) + ".";
      const auto normed = norm(x, prefix + "attn_norm.weight");
      auto q = product(normed, prefix + "attn_q.weight");
      auto k = product(normed, prefix + "attn_k.weight");
      const auto v = product(normed, prefix + "attn_v.weight");
      rotate(q, query_heads);
      rotate(k, kv_heads);
      const auto attention =
          terse_test::naive_attention(query_heads, kv_heads, head_dim, q, k, v, 0);
      add(x, product(attention, prefix + "attn_output.weight"));
      const auto ffn_in = norm(x, prefix + "ffn_norm.weight");
      auto gate = product(ffn_in, prefix + "ffn_gate.weight");
      const auto up = product(ffn_in, prefix + "ffn_up.weight");
      for (std::size_t c = 0; c < gate.size(); ++c) {
        gate[c] = gate[c] / (1 + std::exp(-gate[c])) * up[c];
      }
      add(x, product(gate, prefix + "ffn_down.weight"));
    }
    const bool tied = model_.weights.count("output.weight") == 0;
    return product(norm(x, "output_norm.weight"), tied ? "token_embd.weight" : "output.weight");
  }

 private:
  const std::vector<float>& values(const std::string& name) const {
    return model_.weights.at(name).values;
  }

  std::vector<double> product(const std::vector<double>& x, const std::string& name) const {
    const std::size_t in = model_.weights.at(name).extents[0];
    const std::size_t out = model_.weights.at(name).extents[1];
    const std::vector<float>& w = values(name);
    std::vector<double> y;
    for (std::size_t row = 0; row < x.size() / in; ++row) {
      for (std::size_t column = 0; column < out; ++column) {
        double sum = 0;
        for (std::size_t i = 0; i < in; ++i) {
          sum += x[row * in + i] * double(w[column * in + i]);
        }
        y.push_back(sum);
      }
    }
    return y;
  }

  std::vector<double> norm(const std::vector<double>& x, const std::string& name) const {
    std::vector<double> y;
    for (std::size_t begin = 0; begin < x.size(); begin += hidden) {
      double squares = 0;
      for (std::size_t i = 0; i < hidden; ++i) {
        squares += x[begin + i] * x[begin + i];
      }
      for (std::size_t i = 0; i < hidden; ++i) {
        y.push_back(x[begin + i] / std::sqrt(squares / hidden + 1e-5) * double(values(name)[i]));
      }
    }
    return y;
  }

  static void rotate(std::vector<double>& vectors, int heads) {
    for (std::size_t i = 0; i < vectors.size(); i += 2) {
      const int position = static_cast<int>(i) / (heads * head_dim);
      const int pair = static_cast<int>(i) % head_dim / 2;
      const double angle = position * std::pow(100.0, -2.0 * pair / head_dim);
      const double a = vectors[i];
      const double b = vectors[i + 1];
      vectors[i] = a * std::cos(angle) - b * std::sin(angle);
      vectors[i + 1] = a * std::sin(angle) + b * std::cos(angle);
    }
  }

  static void add(std::vector<double>& x, const std::vector<double>& increment) {
    for (std::size_t i = 0; i < x.size(); ++i) {
      x[i] += increment[i];
    }
  }

  const SmallModel& model_;
};

std::vector<float> logits_of(const LlamaModel& model, const std::vector<std::int32_t>& tokens) {
  std::vector<float> x = model.embed(tokens);
  for (int layer = 0; layer < model.config().layers; ++layer) {
    const Qkv qkv = model.qkv(layer, model.attention_inputs(layer, x), 0);
    model.finish_layer(
        layer, x,
        reference_attention(model.pool(), {query_heads, kv_heads, head_dim}, qkv.q, qkv.k, qkv.v));
  }
  return model.logits(x);
}

const std::vector<std::int32_t> prompt = {3, 49, 0, 7, 7, 21, 30, 12, 44, 1};

}  // namespace

TEST_CASE("the forward pass agrees with fp64, for every thread count") {
  SmallModel small;
  SECTION("with an output matrix") {}
  SECTION("with the embedding as output") { small.weights.erase("output.weight"); }
  const std::vector<double> expected = NaiveModel(small).logits(prompt);
  std::vector<float> first;
  for (const int threads : {1, 2, 3}) {
    ThreadPool pool(threads);
    const LlamaModel model = LlamaModel::load(small.file(), pool);
    const std::vector<float> logits = logits_of(model, prompt);
    REQUIRE(logits.size() == expected.size());
    double worst = 0;
    for (std::size_t i = 0; i < expected.size(); ++i) {
      worst = std::max(worst, std::abs(expected[i] - double(logits[i])));
    }
    // Keys and values are rounded to 11 bits; logits reach about 5.
    CHECK(worst < 0.01);
    first = first.empty() ? logits : first;
    CHECK(first == logits);
  }
}

TEST_CASE("a token's values follow from its position, not from the call it came in") {
  const SmallModel small;
  ThreadPool pool(2);
  const LlamaModel model = LlamaModel::load(small.file(), pool);
  const auto normed = model.attention_inputs(0, model.embed(prompt));
  const Qkv all = model.qkv(0, normed, 0);
  const Qkv later = model.qkv(0, std::span(normed).subspan(4 * hidden), 4);
  for (std::size_t i = 0; i < later.k.size(); ++i) {
    CHECK(later.k[i] == Approx(all.k[4 * kv_heads * head_dim + i]).margin(1e-6));
  }
  const Qkv plain = model.qkv(0, normed, 0, Rope::none, Rope::none);
  CHECK(plain.v == all.v);
  CHECK(plain.q != all.q);
  std::vector<float> q = plain.q;
  std::vector<float> k = plain.k;
  model.apply_rope(q, query_heads, 0);
  model.apply_rope(k, kv_heads, 0);
  CHECK(q == all.q);
  CHECK(k == all.k);
}

TEST_CASE("the configuration and the weights can be read") {
  SmallModel small;
  small.texts["general.name"] = "small";
  ThreadPool pool(1);
  const LlamaModel model = LlamaModel::load(small.file(), pool);
  const LlamaConfig& config = model.config();
  CHECK(config.name == "small");
  CHECK(config.layers == layers);
  CHECK(config.vocabulary == vocabulary);
  CHECK(config.context_tokens == 64);
  CHECK(config.rope_pairing == RopePairing::interleaved);
  CHECK(model.layer(1).w_k == small.weights["blk.1.attn_k.weight"].values);
  CHECK(model.layer(0).w_o == small.weights["blk.0.attn_output.weight"].values);
  CHECK_THROWS_AS(model.layer(2), std::invalid_argument);
  CHECK_THROWS_AS(model.layer(-1), std::invalid_argument);
  CHECK(contains(refusal_of([&] { static_cast<void>(model.embed(std::vector{vocabulary})); }),
                 "token 50"));
  CHECK_THROWS_AS(model.logits(std::vector<float>(hidden + 1)), std::invalid_argument);
}

TEST_CASE("RoPE scaling is applied or refused") {
  SmallModel small;
  ThreadPool pool(1);
  SECTION("linear") {
    small.texts["llama.rope.scaling.type"] = "linear";
    small.reals["llama.rope.scaling.factor"] = 4.0f;
    const LlamaModel model = LlamaModel::load(small.file(), pool);
    CHECK(model.config().rope_frequencies[0] == Approx(0.25));
    CHECK(model.config().rope_frequencies[1] == Approx(0.025));
  }
  SECTION("divisors of each frequency") {
    small.weights["rope_freqs.weight"] = {{2}, {1.0f, 8.0f}};
    const LlamaModel model = LlamaModel::load(small.file(), pool);
    CHECK(model.config().rope_frequencies[0] == Approx(1.0));
    CHECK(model.config().rope_frequencies[1] == Approx(0.1 / 8));
  }
  SECTION("others") {
    small.texts["llama.rope.scaling.type"] = "yarn";
    CHECK(contains(small.refusal(), "\"yarn\""));
  }
  SECTION("impossible values") {
    small.reals["llama.rope.freq_base"] = -1.0f;
    CHECK(contains(small.refusal(), "RoPE"));
  }
}

TEST_CASE("models that do not fit are refused") {
  SmallModel small;
  CHECK(small.refusal().empty());
  SECTION("another architecture") {
    small.texts["general.architecture"] = "mamba";
    CHECK(contains(small.refusal(), "\"mamba\""));
  }
  SECTION("a missing tensor") {
    small.weights.erase("blk.1.ffn_up.weight");
    CHECK(contains(small.refusal(), "\"blk.1.ffn_up.weight\""));
  }
  SECTION("a tensor that nothing reads") {
    small.weights["blk.0.attn_q.bias"] = {{hidden}, std::vector<float>(hidden)};
    CHECK(contains(small.refusal(), "\"blk.0.attn_q.bias\""));
  }
  SECTION("a misshapen tensor") {
    small.weights["blk.0.attn_k.weight"].extents = {kv_heads * head_dim, hidden};
    CHECK(contains(small.refusal(), "is [24, 8] where [8, 24] is needed"));
  }
  SECTION("a value that is not finite") {
    small.weights["blk.0.ffn_down.weight"].values[5] = std::numeric_limits<float>::quiet_NaN();
    CHECK(contains(small.refusal(), "\"blk.0.ffn_down.weight\" holds values that are not finite"));
  }
  SECTION("heads that do not divide") {
    small.integers["llama.attention.head_count_kv"] = 4;
    CHECK(contains(small.refusal(), "heads"));
  }
  SECTION("counts that are no counts") {
    for (const std::uint32_t value : {0u, 0x7fffffffu, 0xffffffffu}) {
      SmallModel other;
      other.integers["llama.embedding_length"] = value;
      CHECK(contains(other.refusal(), "\"llama.embedding_length\""));
      other = SmallModel();
      other.integers["llama.attention.head_count"] = value;
      CHECK(!other.refusal().empty());
    }
  }
  SECTION("more layers than the file has") {
    small.integers["llama.block_count"] = 1000000;
    CHECK(contains(small.refusal(), "\"blk.2.attn_norm.weight\""));
  }
  SECTION("values of another dimension") {
    small.integers["llama.attention.value_length"] = 8;
    CHECK(contains(small.refusal(), "head dimension"));
  }
  SECTION("experts") {
    small.integers["llama.expert_count"] = 8;
    CHECK(contains(small.refusal(), "experts"));
  }
}
