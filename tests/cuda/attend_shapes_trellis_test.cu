#include "terse/terse.hpp"

namespace {

/// One side of trellis codes, the other of another reader's.
using TrellisKeys = terse::KeyValue<terse::ShapedTrellis2::key_codec, terse::Int8>;
using TrellisValues = terse::KeyValue<terse::Int8, terse::ShapedTrellis2::value_codec>;

}  // namespace

#define TERSE_TEST_POLICIES \
  ShapedTrellis3, ShapedTrellis2, ShapedTrellis2K1V, TrellisKeys, TrellisValues
#include "cuda/attend_shapes.cuh"

TEST_CASE("codes along a trellis are read as they are stored", "[cuda][attend]") {
  using R = KVCacheRef<PagedLayout<>, PolicyOf<ShapedTrellis2>>;
  static_assert(cuda::is_specialized<R, 64> && cuda::is_specialized<R, 80>);
  CHECK(std::string(cuda::key_kernel_name<R, 64>()) == "trellis_2_bit");
  CHECK(std::string(cuda::value_kernel_name<R, 64>()) == "trellis_2_bit");
  using Narrower = KVCacheRef<PagedLayout<>, PolicyOf<ShapedTrellis2K1V>>;
  CHECK(std::string(cuda::value_kernel_name<Narrower, 64>()) == "trellis_1_bit");
  using Wider = KVCacheRef<PagedLayout<>, PolicyOf<ShapedTrellis4>>;
  static_assert(!cuda::is_specialized<Wider, 64>);
}
