// Sections of a block and their sizes.
#include "terse/policy/record.hpp"

#include "tests/support/catch.hpp"

using namespace terse;

TEST_CASE("sections follow each other at multiples of 16 bytes, records end at multiples of 128") {
  Record r;
  CHECK(r.bytes == 0);
  r.add(100);
  CHECK(r.sections[0].offset_bytes == 0);
  CHECK(r.bytes == 128);
  r.add(1);
  CHECK(r.sections[1].offset_bytes == 112);
  CHECK(r.bytes == 128);
  r.add(16);
  CHECK(r.sections[2].offset_bytes == 128);
  CHECK(r.bytes == 256);
  CHECK(r.num_sections == 3);
}

TEST_CASE("an empty section keeps its place") {
  Record r;
  r.add(0);
  r.add(64);
  CHECK(r.sections[0].bytes == 0);
  CHECK(r.sections[1].offset_bytes == 0);
  CHECK(r.bytes == 128);
}

TEST_CASE("bits per element count metadata and padding") {
  Record r;
  r.add(64 * 80 / 2);
  r.add(64 * 2);
  CHECK(bits_per_element(r, 80) == 8.0 * static_cast<double>(r.bytes) / (64 * 80));
  static_assert(block_tokens == 64 && record_align_bytes == 128);
}
