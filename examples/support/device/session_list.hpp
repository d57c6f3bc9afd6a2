/// The policies of policy_rows: a row's new one is added here, or programs
/// do not link. Their kernels take long to compile, so they are divided among source files, each of
/// which has one of these lists. Policies that attention on the device reads by its general kernel
/// only, and compositions of policies that are there one by one, are evaluated on the host: the
/// bytes are the same.
#pragma once

#include "terse/terse.hpp"

#include "evaluation/device.hpp"

#define TERSE_EXAMPLE_SESSION(LAYOUT, ...)                                    \
  template std::unique_ptr<Session> make_device_session<LAYOUT, __VA_ARGS__>( \
      const SessionConfig&, const SessionPolicy<__VA_ARGS__>&);

#define TERSE_EXAMPLE_PLAIN_SESSIONS              \
  TERSE_EXAMPLE_SESSION(PagedLayout<>, Identity)  \
  TERSE_EXAMPLE_SESSION(PagedLayout<>, AlignedKV) \
  TERSE_EXAMPLE_SESSION(PagedLayout<>, Fp8)       \
  TERSE_EXAMPLE_SESSION(PagedLayout<>, Int8)      \
  TERSE_EXAMPLE_SESSION(PagedLayout<>, Int4Rotated)

#define TERSE_EXAMPLE_KIVI_SESSIONS           \
  TERSE_EXAMPLE_SESSION(PagedLayout<>, Q8_0)  \
  TERSE_EXAMPLE_SESSION(PagedLayout<>, Q4_0)  \
  TERSE_EXAMPLE_SESSION(PagedLayout<>, Kivi4) \
  TERSE_EXAMPLE_SESSION(PagedLayout<>, Kivi3) \
  TERSE_EXAMPLE_SESSION(PagedLayout<>, Kivi2)

#define TERSE_EXAMPLE_SHAPED_SESSIONS              \
  TERSE_EXAMPLE_SESSION(PagedLayout<>, Shaped4)    \
  TERSE_EXAMPLE_SESSION(PagedLayout<>, Shaped3)    \
  TERSE_EXAMPLE_SESSION(PagedLayout<>, Shaped2)    \
  TERSE_EXAMPLE_SESSION(PagedLayout<>, Shaped3K2V) \
  TERSE_EXAMPLE_SESSION(PagedLayout<>, Compose<Shaped2, TailCodec<Int8>>)

#define TERSE_EXAMPLE_WINDOW_SESSIONS                                    \
  TERSE_EXAMPLE_SESSION(PagedLayout<HeadPaging::per_head>, SinkWindow)   \
  TERSE_EXAMPLE_SESSION(PagedLayout<HeadPaging::per_head>, StreamingLLM) \
  TERSE_EXAMPLE_SESSION(PagedLayout<HeadPaging::per_head>, Compose<Kivi2, StreamingLLM>)

#define TERSE_EXAMPLE_HEAVY_HITTER_SESSIONS                                    \
  TERSE_EXAMPLE_SESSION(PagedLayout<HeadPaging::per_head>, H2O)                \
  TERSE_EXAMPLE_SESSION(PagedLayout<HeadPaging::per_head>, Compose<Int8, H2O>) \
  TERSE_EXAMPLE_SESSION(PagedLayout<HeadPaging::per_head>, Compose<Int4Rotated, H2O>)

#define TERSE_EXAMPLE_LATENT_SESSIONS                                   \
  TERSE_EXAMPLE_SESSION(PagedLayout<>, PaluJoint)                       \
  TERSE_EXAMPLE_SESSION(PagedLayout<>, Compose<PaluJoint, Int4Rotated>) \
  TERSE_EXAMPLE_SESSION(PagedLayout<>, Compose<PaluJoint, Int4Rotated, H2O>)

#define TERSE_EXAMPLE_HOST_SESSIONS                                                      \
  TERSE_EXAMPLE_SESSION(PagedLayout<>, NvFp4)                                            \
  TERSE_EXAMPLE_SESSION(PagedLayout<>, TurboQuant4)                                      \
  TERSE_EXAMPLE_SESSION(PagedLayout<>, TurboQuant3)                                      \
  TERSE_EXAMPLE_SESSION(PagedLayout<>, TurboQuant2)                                      \
  TERSE_EXAMPLE_SESSION(PagedLayout<>, TurboQuantProd4)                                  \
  TERSE_EXAMPLE_SESSION(PagedLayout<>, TurboQuantProd3)                                  \
  TERSE_EXAMPLE_SESSION(PagedLayout<>, TurboQuantProd2)                                  \
  TERSE_EXAMPLE_SESSION(PagedLayout<>, KVarN4K2V)                                        \
  TERSE_EXAMPLE_SESSION(PagedLayout<>, KVarN2)                                           \
  TERSE_EXAMPLE_SESSION(PagedLayout<>, KVQuant3)                                         \
  TERSE_EXAMPLE_SESSION(PagedLayout<>, KVQuant2)                                         \
  TERSE_EXAMPLE_SESSION(PagedLayout<>, KeyValue<Fp8, Identity>)                          \
  TERSE_EXAMPLE_SESSION(PagedLayout<>, KeyValue<Identity, Fp8>)                          \
  TERSE_EXAMPLE_SESSION(PagedLayout<>, AlignedFixed16)                                   \
  TERSE_EXAMPLE_SESSION(PagedLayout<>, AlignedInt8)                                      \
  TERSE_EXAMPLE_SESSION(PagedLayout<>, AlignedInt4)                                      \
  TERSE_EXAMPLE_SESSION(PagedLayout<>, Shaped2K1V)                                       \
  TERSE_EXAMPLE_SESSION(PagedLayout<>, Shaped4Searched)                                  \
  TERSE_EXAMPLE_SESSION(PagedLayout<>, ShapedTrellis4)                                   \
  TERSE_EXAMPLE_SESSION(PagedLayout<>, ShapedTrellis3)                                   \
  TERSE_EXAMPLE_SESSION(PagedLayout<>, ShapedTrellis3K2V)                                \
  TERSE_EXAMPLE_SESSION(PagedLayout<>, ShapedTrellis2)                                   \
  TERSE_EXAMPLE_SESSION(PagedLayout<>, Compose<ShapedTrellis2, TailCodec<Int8>>)         \
  TERSE_EXAMPLE_SESSION(PagedLayout<>, ShapedTrellis2K1V)                                \
  TERSE_EXAMPLE_SESSION(PagedLayout<HeadPaging::per_head>, Compose<Shaped4, H2O>)        \
  TERSE_EXAMPLE_SESSION(PagedLayout<HeadPaging::per_head>, Compose<Shaped4, SinkWindow>) \
  TERSE_EXAMPLE_SESSION(PagedLayout<HeadPaging::per_head>, Compose<Shaped3K2V, H2O>)
