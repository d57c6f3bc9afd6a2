#include "terse/terse.hpp"

#define TERSE_TEST_POLICIES TurboQuant2, TurboQuant3, TurboQuant4
#include "cuda/attend_shapes.cuh"

namespace {

/// Factors are twice what is stored.
struct DoubledFactors : TurboQuantLevels<TurboQuantSpec{.bits = 2}> {
  TERSE_HOST_DEVICE static constexpr float scale_value(F16 scale) noexcept {
    return 2.0f * to_float(scale);
  }
};
/// The upper half of the levels is negative.
struct FallingLevels : TurboQuantLevels<TurboQuantSpec{.bits = 4}> {
  TERSE_HOST_DEVICE static constexpr float level(unsigned code) noexcept {
    return NormalLevels<4>::level(15 - code);
  }
};
static_assert(cuda::detail::TokenLevels<TurboQuant2> && cuda::detail::TokenLevels<TurboQuant4>);
static_assert(!cuda::detail::TokenLevels<LevelCodes<DoubledFactors>>);
static_assert(!cuda::detail::TokenLevels<LevelCodes<FallingLevels>>);

}  // namespace

TEST_CASE("levels are read as they are stored", "[cuda][attend]") {
  using R = KVCacheRef<PagedLayout<>, PolicyOf<TurboQuant2>>;
  static_assert(cuda::is_specialized<R, 64> && cuda::is_specialized<R, 80>);
  CHECK(std::string(cuda::key_kernel_name<R, 64>()) == "levels_2_bit");
  CHECK(std::string(cuda::value_kernel_name<R, 64>()) == "levels_2_bit");
  using Mixed = KVCacheRef<PagedLayout<>, PolicyOf<KeyValue<TurboQuant4, NvFp4>>>;
  static_assert(!cuda::is_specialized<Mixed, 64>);  // a factor for 16 channels
}
