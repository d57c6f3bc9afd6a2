#include "report/sha256.hpp"

#include <filesystem>
#include <fstream>

#include "report/input_error.hpp"
#include "support/catch.hpp"

using terse::examples::InputError;
using terse::examples::Sha256;
using terse::examples::sha256_of;
using terse::examples::sha256_of_file;

// The messages of FIPS 180-4's examples.
TEST_CASE("sha256_of the standard's messages", "[report]") {
  CHECK(sha256_of("abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  CHECK(sha256_of("") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  CHECK(sha256_of("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq") ==
        "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
  CHECK(sha256_of(std::string(1000000, 'a')) ==
        "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
}

TEST_CASE("pieces give the digest of the whole", "[report]") {
  for (const std::size_t length : {0U, 1U, 55U, 56U, 57U, 63U, 64U, 65U, 119U, 120U, 128U, 1000U}) {
    std::string text;
    for (std::size_t i = 0; i < length; ++i) text += static_cast<char>('a' + i * 7 % 26);
    for (const std::size_t piece : {1U, 3U, 63U, 64U, 65U}) {
      CAPTURE(length, piece);
      Sha256 hash;
      for (std::size_t first = 0; first < length; first += piece) {
        hash.update(std::string_view(text).substr(first, piece));
      }
      CHECK(hash.finish() == sha256_of(text));
    }
  }
  // Lengths around the padding's edge, from an independent implementation.
  CHECK(sha256_of(std::string(55, 'a')) ==
        "9f4390f8d30c2dd92ec9f095b65e2b9ae9b0a925a5258e241c9f1e910f734318");
  CHECK(sha256_of(std::string(56, 'a')) ==
        "b35439a4ac6f0948b6d6f9e3c6af0f5f590ce20f1bde7090ef7970686ec6738a");
  CHECK(sha256_of(std::string(64, 'a')) ==
        "ffe054fe7ae0cb6dc65c3af9b61d5209f439851db43d0ba5997337df154668eb");
}

TEST_CASE("sha256_of_file", "[report]") {
  const auto folder = std::filesystem::temp_directory_path();
  const auto path = folder / "terse_sha256_test.bin";
  const std::string content(600000, 'x');
  std::ofstream(path, std::ios::binary) << content;
  CHECK(sha256_of_file(path.string()) == sha256_of(content));
  std::filesystem::remove(path);
  CHECK_THROWS_AS(sha256_of_file(path.string()), InputError);
  CHECK_THROWS_AS(sha256_of_file(folder.string()), InputError);
}
