#include "tokenizer.hpp"

#include <cstdio>
#include <string>
#include <vector>

#include "gguf_builder.hpp"
#include "refusal.hpp"
#include "support/catch.hpp"

using namespace terse::examples;
using terse_test::contains;
using terse_test::GgufBuilder;
using terse_test::refusal_of;

namespace {

using Ids = std::vector<std::int32_t>;

enum Type { normal = 1, unknown = 2, control = 3, user_defined = 4, byte = 6 };

struct Entry {
  std::string spelling;
  Type type = normal;
  float score = 0;
};

GgufBuilder vocabulary_file(const std::string& model, const std::vector<Entry>& entries) {
  std::vector<std::string> spellings;
  std::vector<std::int32_t> types;
  std::vector<float> scores;
  for (const Entry& entry : entries) {
    spellings.push_back(entry.spelling);
    types.push_back(entry.type);
    scores.push_back(entry.score);
  }
  GgufBuilder builder;
  builder.text("tokenizer.ggml.model", model)
      .texts("tokenizer.ggml.tokens", spellings)
      .integers("tokenizer.ggml.token_type", types)
      .reals("tokenizer.ggml.scores", scores);
  return builder;
}

Tokenizer load(const GgufBuilder& builder) {
  return Tokenizer::load(GgufFile::from_bytes(builder.build(), "file"));
}

std::string refusal(const GgufBuilder& builder) {
  return refusal_of([&] { static_cast<void>(load(builder)); });
}

const std::vector<Entry> byte_level_entries = {{"<end>", control},
                                               {"<x>", user_defined},
                                               {"a"},
                                               {"b"},
                                               {"c"},
                                               {"\u0120"},
                                               {"ab"},
                                               {"\u0120a"},
                                               {"bc"},
                                               {"\u0120ab"},
                                               {"\u00c3"},
                                               {"\u00a9"}};

GgufBuilder byte_level(const std::string& pre = "smollm") {
  GgufBuilder builder = vocabulary_file("gpt2", byte_level_entries);
  builder.text("tokenizer.ggml.pre", pre)
      .texts("tokenizer.ggml.merges", {"b c", "a b", "\u0120 a", "\u0120a b"})
      .integer("tokenizer.ggml.eos_token_id", 0);
  return builder;
}

}  // namespace

TEST_CASE("byte-level BPE merges in the order of the list") {
  const Tokenizer tokenizer = load(byte_level());
  CHECK(tokenizer.vocabulary() == 12);
  CHECK(tokenizer.encode("").empty());
  CHECK(tokenizer.encode("abc") == Ids{2, 8});
  CHECK(tokenizer.encode("ab") == Ids{6});
  CHECK(tokenizer.encode("ab ab abc") == Ids{6, 5, 6, 7, 8});
  CHECK(tokenizer.encode("aab") == Ids{2, 6});
  CHECK(tokenizer.encode("\u00e9") == Ids{10, 11});
  CHECK(tokenizer.decode(Ids{6, 9, 10, 11, 1}) == "ab ab\u00e9<x>");
  const std::string long_word(100000, 'a');
  CHECK(tokenizer.encode(long_word) == Ids(100000, 2));
}

TEST_CASE("equal merges go from left to right") {
  GgufBuilder builder = vocabulary_file("gpt2", {{"a"}, {"aa"}});
  builder.text("tokenizer.ggml.pre", "gpt-2").texts("tokenizer.ggml.merges", {"a a"});
  CHECK(load(builder).encode("aaaaa") == Ids{1, 1, 0});
}

TEST_CASE("special tokens are parsed where they may be") {
  const Tokenizer tokenizer = load(byte_level());
  CHECK(tokenizer.encode("a<end>b<x>c<end>", SpecialTokens::parsed) == Ids{2, 0, 3, 1, 4, 0});
  CHECK(tokenizer.encode("<x><x>") == Ids{1, 1});
  CHECK(contains(refusal_of([&] { static_cast<void>(tokenizer.encode("a<end>")); }), "byte 60"));
  CHECK(tokenizer.find_token("<end>") == 0);
  CHECK(!tokenizer.find_token("none").has_value());
  CHECK(tokenizer.is_end_of_generation(0));
  CHECK(!tokenizer.is_end_of_generation(1));
  CHECK(tokenizer.decode(Ids{2, 0}) == "a");
  CHECK(tokenizer.decode(Ids{2, 0}, true) == "a<end>");
  CHECK(!refusal_of([&] { static_cast<void>(tokenizer.decode(Ids{12})); }).empty());
  CHECK(!refusal_of([&] { static_cast<void>(tokenizer.decode(Ids{-1})); }).empty());
}

TEST_CASE("a byte without a token becomes the unknown token") {
  GgufBuilder builder = byte_level();
  builder.integer("tokenizer.ggml.unknown_token_id", 0);
  CHECK(load(builder).encode("a?b") == Ids{2, 0, 3});
}

TEST_CASE("Llama 3 takes words whole and starts with a token") {
  GgufBuilder builder = vocabulary_file("gpt2", {{"<s>", control}, {"a"}, {"b"}, {"ab"}, {"bab"}});
  builder.text("tokenizer.ggml.pre", "llama-bpe")
      .texts("tokenizer.ggml.merges", {"a b"})
      .integer("tokenizer.ggml.bos_token_id", 0);
  const Tokenizer tokenizer = load(builder);
  CHECK(tokenizer.encode("bab") == Ids{0, 4});
  CHECK(tokenizer.encode("baba", {}, AddBos::no) == Ids{2, 3, 1});
}

TEST_CASE("a stream of tokens is decoded character by character") {
  const Tokenizer tokenizer = load(byte_level());
  StreamDecoder decoder(tokenizer);
  CHECK(decoder.push(6) == "ab");
  CHECK(decoder.push(10).empty());
  CHECK(decoder.push(11) == "\u00e9");
  CHECK(decoder.push(0).empty());
  CHECK(decoder.push(10).empty());
  CHECK(decoder.push(2) ==
        "\xc3"
        "a");
  CHECK(decoder.push(10).empty());
  CHECK(decoder.finish() == "\xc3");
  CHECK(decoder.finish().empty());
}

TEST_CASE("SentencePiece BPE merges by score and falls back to bytes") {
  std::vector<Entry> entries = {{"<unk>", unknown}, {"<s>", control}, {"</s>", control}};
  for (int value = 0; value < 256; ++value) {
    char name[8];
    std::snprintf(name, sizeof name, "<0x%02X>", static_cast<unsigned>(value));
    entries.push_back({name, byte});
  }
  for (const Entry& entry :
       {Entry{"\u2581", normal, -10}, Entry{"a", normal, -11}, Entry{"b", normal, -12},
        Entry{"\u2581a", normal, -1}, Entry{"ab", normal, -2}, Entry{"aba", normal, -3},
        Entry{"c", normal, -13}, Entry{"bc", normal, -2}}) {
    entries.push_back(entry);
  }
  GgufBuilder builder = vocabulary_file("llama", entries);
  builder.integer("tokenizer.ggml.bos_token_id", 1).integer("tokenizer.ggml.unknown_token_id", 0);
  const Tokenizer tokenizer = load(builder);
  CHECK(tokenizer.encode("ab") == Ids{1, 262, 261});
  CHECK(tokenizer.encode("bab") == Ids{1, 259, 261, 263});
  CHECK(tokenizer.encode("bababa", {}, AddBos::no) == Ids{259, 261, 263, 264});
  // Of equal scores the leftmost goes first.
  CHECK(tokenizer.encode("babc", {}, AddBos::no) == Ids{259, 261, 263, 265});
  CHECK(tokenizer.encode("\u00e9", {}, AddBos::no) == Ids{259, 3 + 0xc3, 3 + 0xa9});
  CHECK(tokenizer.encode("a</s>a", SpecialTokens::parsed) == Ids{1, 262, 2, 262});
  CHECK(tokenizer.encode("") == Ids{1});
  CHECK(tokenizer.decode(tokenizer.encode(" ab \u00e9 b")) == " ab \u00e9 b");
}

TEST_CASE("vocabularies that are damaged or of another kind are refused") {
  CHECK(contains(refusal(byte_level("qwen2")), "\"qwen2\" is not supported"));
  CHECK(contains(refusal(vocabulary_file("bert", byte_level_entries)), "\"bert\""));
  CHECK(contains(refusal(vocabulary_file("gpt2", byte_level_entries)), "\"missing\""));
  CHECK(contains(refusal(vocabulary_file("gpt2", {})), "0 tokens"));
  CHECK(contains(refusal(vocabulary_file("llama", {{"<0xZZ>", byte}})), "names no byte"));

  GgufBuilder types;
  types.text("tokenizer.ggml.model", "gpt2")
      .texts("tokenizer.ggml.tokens", {"a", "b"})
      .integers("tokenizer.ggml.token_type", {1});
  CHECK(contains(refusal(types), "token types"));

  for (const char* merge : {"a z", "ab", "", " ", "c a"}) {
    GgufBuilder builder = vocabulary_file("gpt2", byte_level_entries);
    builder.text("tokenizer.ggml.pre", "smollm").texts("tokenizer.ggml.merges", {merge});
    CHECK(contains(refusal(builder), "merge"));
  }
  GgufBuilder outside = byte_level();
  outside.integer("tokenizer.ggml.bos_token_id", 12);
  CHECK(contains(refusal(outside), "outside the vocabulary"));
  GgufBuilder without_bos = byte_level();
  without_bos.boolean("tokenizer.ggml.add_bos_token", true);
  CHECK(contains(refusal(without_bos), "beginning-of-sequence"));
}
