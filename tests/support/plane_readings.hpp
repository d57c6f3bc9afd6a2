/// Short ways to ask for planes and to look at what was read.
#pragma once

#include "support/cache_fixture.hpp"

namespace terse::tests {

/// As few planes as keep logits and outputs within tolerances.
constexpr PlaneReading within(float logits, float values) {
  return {PlaneRule::tolerance, logits, values, 0};
}

/// Over all parts and units.
inline BytesRead sum_of(const Attended& a) {
  BytesRead sum;
  for (const BytesRead& unit : a.bytes_read) sum += unit;
  return sum;
}

}  // namespace terse::tests
