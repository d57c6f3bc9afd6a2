#include "terse/terse.hpp"

#define TERSE_TEST_POLICIES TurboQuant2, TurboQuant3, TurboQuant4
#include "cuda/attend_shapes.cuh"

TEST_CASE("levels are read as they are stored", "[cuda][attend]") {
  using R = KVCacheRef<PagedLayout<>, PolicyOf<TurboQuant2>>;
  static_assert(cuda::is_specialized<R, 64> && cuda::is_specialized<R, 80>);
  CHECK(std::string(cuda::key_kernel_name<R, 64>()) == "levels_2_bit");
  CHECK(std::string(cuda::value_kernel_name<R, 64>()) == "levels_2_bit");
  using Mixed = KVCacheRef<PagedLayout<>, PolicyOf<KeyValue<TurboQuant4, NvFp4>>>;
  static_assert(!cuda::is_specialized<Mixed, 64>);  // a factor for 16 channels
}
