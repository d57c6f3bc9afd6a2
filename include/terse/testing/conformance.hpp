/// Checks that a codec or an evictor keeps its contract, for users' own parts. No test framework:
///
///   const terse::testing::Report r = terse::testing::check_codec<MyCodec>(128);
///   if (!r.ok()) std::puts(r.failure.c_str());
///
/// check_codec and check_evictor run up to a few thousand small cases in well under a second. They
/// see what the contracts of policy/codec.hpp and policy/evictor.hpp promise; whether a method is
/// any good on a model is another question.
#pragma once

#include "terse/testing/check_codec.hpp"
#include "terse/testing/check_evictor.hpp"
