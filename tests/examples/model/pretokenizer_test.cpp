#include "pretokenizer.hpp"

#include <string>
#include <string_view>
#include <vector>

#include "support/catch.hpp"
#include "unicode.hpp"

using namespace terse::examples;

namespace {

using Words = std::vector<std::string_view>;

Words smollm(std::string_view text) { return split_words(Pretokenizer::smollm, text); }
Words gpt2(std::string_view text) { return split_words(Pretokenizer::gpt2, text); }
Words llama(std::string_view text) { return split_words(Pretokenizer::llama_bpe, text); }

}  // namespace

TEST_CASE("GPT-2 words") {
  CHECK(gpt2("").empty());
  CHECK(gpt2("Hello world") == Words{"Hello", " world"});
  CHECK(gpt2("a1234 56") == Words{"a", "1234", " 56"});
  CHECK(gpt2("I'm we'll 'tis DON'T") ==
        Words{"I", "'m", " we", "'ll", " '", "tis", " DON", "'", "T"});
  CHECK(gpt2("x   y") == Words{"x", "  ", " y"});
  CHECK(gpt2("x \n\n") == Words{"x", " \n\n"});
  CHECK(gpt2("x\n\ty") == Words{"x", "\n", "\t", "y"});
  CHECK(gpt2("?!... ok") == Words{"?!...", " ok"});
  CHECK(gpt2("\u00e9t\u00e9 \u2167") == Words{"\u00e9t\u00e9", " \u2167"});
  CHECK(gpt2("a\u3000b") == Words{"a", "\u3000", "b"});
}

TEST_CASE("SmolLM words take number characters one by one") {
  CHECK(smollm("in 1889 x") == Words{"in", " ", "1", "8", "8", "9", " x"});
  CHECK(smollm("  12") == Words{"  ", "1", "2"});
  CHECK(smollm("a\u0663b") == Words{"a", "\u0663", "b"});
  // Letters of two stretches never join, and an ending of a contraction is one only in its stretch.
  CHECK(smollm("'1s 's") == Words{"'", "1", "s", " '", "s"});
  CHECK(smollm("x's 's") == Words{"x", "'s", " '", "s"});
}

TEST_CASE("Llama 3 words") {
  CHECK(llama("Hello world") == Words{"Hello", " world"});
  CHECK(llama("12345 6") == Words{"123", "45", " ", "6"});
  CHECK(llama("DON'T we'Ll") == Words{"DON", "'T", " we", "'Ll"});
  CHECK(llama("(x) {y}\n\nz") == Words{"(x", ")", " {", "y", "}\n\n", "z"});
  CHECK(llama("x \n\n  y") == Words{"x", " \n\n", " ", " y"});
  CHECK(llama("a\tb") == Words{"a", "\tb"});
  CHECK(llama("a   ") == Words{"a", "   "});
}

TEST_CASE("words together are the text, whatever its bytes") {
  const std::string text =
      "ok \xff\xfe caf\xc3\xa9 \xe6\x97 cut \xed\xa0\x80 \xc0\x80 \x80 \xf0\x9f\x98";
  for (const Pretokenizer kind :
       {Pretokenizer::gpt2, Pretokenizer::smollm, Pretokenizer::llama_bpe}) {
    std::string joined;
    for (const std::string_view word : split_words(kind, text)) {
      CHECK(!word.empty());
      joined += word;
    }
    CHECK(joined == text);
  }
}

TEST_CASE("pre-tokenisers are known by name") {
  CHECK(pretokenizer_by_name("smollm") == Pretokenizer::smollm);
  CHECK(pretokenizer_by_name("llama-bpe") == Pretokenizer::llama_bpe);
  CHECK(!pretokenizer_by_name("qwen2").has_value());
}

TEST_CASE("UTF-8 is decoded strictly") {
  for (const char32_t code : {U'a', U'\u00e9', U'\u65e5', U'\U0001f600', U'\U0010ffff'}) {
    const std::string text = encode_utf8(code);
    CHECK(decode_utf8(text).code == code);
    CHECK(decode_utf8(text).bytes == text.size());
    for (std::size_t cut = 1; cut < text.size(); ++cut) {
      CHECK(decode_utf8(text.substr(0, cut)).code == invalid_character);
      CHECK(incomplete_utf8_bytes(std::string("x").append(text, 0, cut)) == cut);
    }
    CHECK(incomplete_utf8_bytes(text) == 0);
  }
  for (const char* text : {"\x80", "\xc0\x80", "\xe0\x80\x80", "\xed\xa0\x80", "\xf0\x8f\xbf\xbf",
                           "\xf4\x90\x80\x80", "\xf8\x88\x80\x80\x80", "\xc3x"}) {
    CHECK(decode_utf8(text).code == invalid_character);
    CHECK(decode_utf8(text).bytes == 1);
  }
  CHECK(incomplete_utf8_bytes("") == 0);
  CHECK(incomplete_utf8_bytes("\x80\x80\x80\x80") == 0);
}

TEST_CASE("characters have their Unicode classes") {
  for (const char32_t code : {U'a', U'Z', U'\u00aa', U'\u0414', U'\u65e5', U'\U0001d49c'}) {
    CHECK(is_letter(code));
    CHECK(!is_number(code));
  }
  for (const char32_t code : {U'0', U'\u00b2', U'\u0663', U'\u2167', U'\u00bd'}) {
    CHECK(is_number(code));
    CHECK(!is_letter(code));
  }
  for (const char32_t code : {U' ', U'\n', U'\u0085', U'\u00a0', U'\u2003', U'\u3000'}) {
    CHECK(is_whitespace(code));
  }
  for (const char32_t code : {U'\u200b', U'\u0301', U'\U0001f600', U'_', invalid_character}) {
    CHECK(!is_letter(code));
    CHECK(!is_number(code));
    CHECK(!is_whitespace(code));
  }
}
