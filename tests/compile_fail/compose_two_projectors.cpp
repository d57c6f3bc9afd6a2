// expect: terse::Compose: two projectors; latents of latents are one projector
// expect: keep one.
#include "terse/lowrank/palu.hpp"
#include "terse/policy/compose.hpp"

#ifdef TERSE_EXPECT_FAIL
template struct terse::Compose<terse::PaluJoint, terse::PaluPerHead>;
#else
template struct terse::Compose<terse::PaluJoint>;
#endif
