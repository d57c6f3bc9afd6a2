// Passkey cases with a tokeniser whose tokens are single characters.

#include "evaluation/passkey.hpp"

#include <cmath>
#include <map>
#include <set>
#include <utility>

#include "../model/refusal.hpp"
#include "evaluation/policies.hpp"
#include "evaluation/window.hpp"
#include "small_model.hpp"
#include "support/catch.hpp"

using namespace terse::examples;
using terse_test::contains;
using terse_test::GgufBuilder;
using terse_test::random_tokens;
using terse_test::refusal_of;

namespace {

/// Every printable character is a token; with `pairs`, two digits are one token as well.
Tokenizer character_tokenizer(bool pairs = false) {
  std::vector<std::string> spellings, merges;
  for (char c = '!'; c <= '~'; ++c) spellings.emplace_back(1, c);
  spellings.emplace_back("\u0120");  // how byte-level vocabularies write a space
  spellings.emplace_back("\u010a");  // and a line feed
  for (char a = '0'; pairs && a <= '9'; ++a) {
    for (char b = '0'; b <= '9'; ++b) {
      spellings.push_back({a, b});
      merges.push_back({a, ' ', b});
    }
  }
  GgufBuilder builder;
  builder.text("tokenizer.ggml.model", "gpt2")
      .text("tokenizer.ggml.pre", pairs ? "gpt-2" : "smollm")
      .texts("tokenizer.ggml.tokens", spellings)
      .integers("tokenizer.ggml.token_type", std::vector<std::int32_t>(spellings.size(), 1))
      .texts("tokenizer.ggml.merges", merges);
  return Tokenizer::load(GgufFile::from_bytes(builder.build(), "characters.gguf"));
}

std::string haystack_text(std::size_t length) {
  std::string text;
  while (text.size() < length) text += "it was a fine day, and nobody said a word. ";
  text.resize(length);
  return text;
}

/// What is planted and what is asked.
std::pair<std::string, std::string> wording_of(const std::string& key, bool first_form) {
  if (first_form) {
    return {"\n\nThe pass key is " + key + ". Remember it. " + key + " is the pass key.\n\n",
            "\n\nWhat is the pass key? The pass key is " + key};
  }
  return {"\n\nThe secret number of Elizabeth is " + key + ".\n\n",
          "\n\nThe secret number of Elizabeth is " + key};
}

}  // namespace

TEST_CASE("a passkey is planted at its depth and asked for at the end") {
  const Tokenizer tokenizer = character_tokenizer();
  const std::string prose = haystack_text(600);
  const auto cases = make_passkeys(tokenizer, tokenizer.encode(prose), 500, 12);
  REQUIRE(cases.size() == 12);
  const double depths[] = {0.1, 0.5, 0.9};
  std::set<std::string> keys;
  std::map<std::pair<double, bool>, int> kinds;
  for (std::size_t i = 0; i < cases.size(); ++i) {
    INFO("case " << i);
    const PasskeyCase& one = cases[i];
    CHECK(one.digits == 5);
    REQUIRE(one.tokens.size() == 500);
    const std::string text = tokenizer.decode(one.tokens);
    const std::string key = text.substr(495);
    for (const char c : key) CHECK((c >= '0' && c <= '9'));
    keys.insert(key);
    const bool first_form = i % 2 == 0;
    const auto [planted, asked] = wording_of(key, first_form);
    const std::size_t at = text.find(planted);
    REQUIRE(at != std::string::npos);
    const std::size_t room = 500 - planted.size() - asked.size();
    const double depth = depths[i % 3];
    CHECK(static_cast<double>(at) == Approx(depth * static_cast<double>(room)).margin(1.0));
    ++kinds[{depth, first_form}];
    // Nothing of the prose is lost around it.
    CHECK(text.substr(0, at) == prose.substr(0, at));
    CHECK(text.substr(at + planted.size()) == prose.substr(at, room - at) + asked);
  }
  CHECK(keys.size() == 12);
  CHECK(kinds.size() == 6);
  for (const auto& [kind, count] : kinds) CHECK(count == 2);
}

TEST_CASE("passkeys are the same in every run, and more of them only add") {
  const Tokenizer tokenizer = character_tokenizer();
  const auto haystack = tokenizer.encode(haystack_text(400));
  const auto few = make_passkeys(tokenizer, haystack, 400, 2);
  const auto more = make_passkeys(tokenizer, haystack, 400, 3);
  CHECK(few[0].tokens == more[0].tokens);
  CHECK(few[1].tokens == more[1].tokens);
  CHECK(make_passkeys(tokenizer, haystack, 400, 0).empty());
}

TEST_CASE("what cannot become a passkey is refused") {
  const Tokenizer tokenizer = character_tokenizer();
  const auto haystack = tokenizer.encode(haystack_text(200));
  const auto refusal = [&](int length) {
    return refusal_of([&] { static_cast<void>(make_passkeys(tokenizer, haystack, length, 1)); });
  };
  CHECK(contains(refusal(1000), "too short for passkeys of 1000 tokens"));
  CHECK(contains(refusal(150), "too short"));
  CHECK(refusal(280).empty());
}

TEST_CASE("a tokeniser that joins digits has no passkeys") {
  CHECK(keeps_digits_apart(character_tokenizer()));
  const Tokenizer pairs = character_tokenizer(true);
  CHECK(!keeps_digits_apart(pairs));
  const auto haystack = pairs.encode(haystack_text(600));
  CHECK(contains(refusal_of([&] { static_cast<void>(make_passkeys(pairs, haystack, 400, 1)); }),
                 "joins digits"));
  CHECK(make_passkeys(pairs, haystack, 400, 0).empty());
}

TEST_CASE("a score sums over the digits alone") {
  ThreadPool pool(1);
  const LlamaModel model = LlamaModel::load(terse_test::small_model_file(), pool);
  PasskeyCase one;
  one.tokens = random_tokens(70, model.config().vocabulary, 2);
  const SessionConfig config{.model = &model, .max_tokens = 70, .max_step_tokens = 64};
  const auto session = policy_row("identity").make_session(config);
  const PasskeyScore score = score_passkey(model, config, *session, one);
  CHECK(score.digits == 5);

  // The same from the reference run: the five last tokens, each predicted by the one before it.
  const std::vector<float> x = run_reference(model, one.tokens);
  const std::vector<float> logits = model.logits(x);
  const auto vocabulary = static_cast<std::size_t>(model.config().vocabulary);
  double nll = 0;
  int right = 0;
  for (std::size_t target = 65; target < 70; ++target) {
    const float* row = logits.data() + (target - 1) * vocabulary;
    double sum = 0;
    std::size_t best = 0;
    for (std::size_t i = 0; i < vocabulary; ++i) {
      sum += std::exp(double{row[i]});
      if (row[i] > row[best]) best = i;
    }
    const auto digit = static_cast<std::size_t>(one.tokens[target]);
    nll += std::log(sum) - double{row[digit]};
    right += best == digit ? 1 : 0;
  }
  CHECK(score.nll == Approx(nll).epsilon(1e-3));
  CHECK(score.digits_right == right);
}
