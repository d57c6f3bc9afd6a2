// Writes the keys, values and queries of this folder from SmolLM2-135M-Instruct (Q4_1) and
// Persuasion (Debian's r-cran-janeaustenr), one layer of one stretch of text:
//
//     cmake --build BUILD --target make_smollm2_sample
//     PROGRAM MODEL.gguf persuasion.txt tests/data/smollm2_sample
//
// with PROGRAM being BUILD/tests/examples/evaluation/make_smollm2_sample. Here:
//
// keys.f16, values.f16   [token, KV head, channel], [160, 3, 64], keys after RoPE
// queries.f16            [token, query head, channel] of the last 8 tokens, [8, 9, 64], after RoPE
//
// Everything is IEEE binary16, little-endian, without a header.

#include <cstdio>
#include <fstream>
#include <string>
#include <vector>

#include "gguf.hpp"
#include "half.hpp"
#include "input_error.hpp"
#include "llama.hpp"
#include "reference_attention.hpp"
#include "tokenizer.hpp"

namespace {

using namespace terse::examples;

constexpr int sampled_layer = 5;  // among the layers whose quantisation costs most
constexpr std::size_t sampled_tokens = 160;
constexpr std::size_t query_tokens = 8;
constexpr std::streamoff text_begin = 20000;

void write(const std::string& path, std::span<const float> values) {
  std::ofstream out(path, std::ios::binary);
  for (const float value : values) {
    const std::uint16_t half = float_to_half(value);
    out.put(static_cast<char>(half & 0xff)).put(static_cast<char>(half >> 8));
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 4) {
    std::fprintf(stderr, "usage: make_smollm2_sample MODEL.gguf TEXT FOLDER\n");
    return 2;
  }
  try {
    ThreadPool pool(1);
    const GgufFile file = GgufFile::open(argv[1]);
    const LlamaModel model = LlamaModel::load(file, pool);
    std::ifstream in(argv[2], std::ios::binary);
    in.seekg(text_begin);
    std::string text(sampled_tokens * 12, '\0');
    in.read(text.data(), static_cast<std::streamsize>(text.size()));
    std::vector<std::int32_t> tokens = Tokenizer::load(file).encode(text);
    if (!in || tokens.size() < sampled_tokens) throw InputError("the text is too short");
    tokens.resize(sampled_tokens);

    const LlamaConfig& config = model.config();
    std::vector<float> x = model.embed(tokens);
    for (int layer = 0;; ++layer) {
      const Qkv qkv = model.qkv(layer, model.attention_inputs(layer, x), 0);
      if (layer == sampled_layer) {
        const std::string folder = std::string(argv[3]) + "/";
        const auto query_width = static_cast<std::size_t>(config.query_heads * config.head_dim);
        write(folder + "keys.f16", qkv.k);
        write(folder + "values.f16", qkv.v);
        write(folder + "queries.f16", std::span(qkv.q).last(query_tokens * query_width));
        return 0;
      }
      const AttentionShape shape{config.query_heads, config.kv_heads, config.head_dim};
      model.finish_layer(layer, x, reference_attention(pool, shape, qkv.q, qkv.k, qkv.v));
    }
  } catch (const InputError& error) {
    std::fprintf(stderr, "make_smollm2_sample: %s\n", error.what());
    return 2;
  }
}
