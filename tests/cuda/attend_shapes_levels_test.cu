#include "terse/terse.hpp"

namespace {

/// A scale of the tensor so small that groups have the largest ones; one side of another reader's.
using SmallScale = terse::NvFp4Scaled<terse::NvFp4Spec{.tensor_scale_log2 = -12}>;
using FinerKeys = terse::KeyValue<SmallScale, terse::Int8>;
using FinerValues = terse::KeyValue<terse::Int8, SmallScale>;

}  // namespace

#define TERSE_TEST_POLICIES TurboQuant2, TurboQuant3, TurboQuant4, NvFp4, FinerKeys, FinerValues
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
/// Scales are not in proportion to what is stored.
struct LargerScales : NvFp4Levels<NvFp4Spec{.tensor_scale_log2 = 1}> {
  TERSE_HOST_DEVICE static constexpr float scale_value(std::uint8_t scale) noexcept {
    return from_e4m3(scale) + 1.0f;
  }
};
/// Of twice the size where the sign bit is set.
struct SignedScales : NvFp4Levels<NvFp4Spec{.tensor_scale_log2 = 2}> {
  TERSE_HOST_DEVICE static constexpr float scale_value(std::uint8_t scale) noexcept {
    return from_e4m3(scale & 0x7f) * ((scale & 0x80) != 0 ? 2.0f : 1.0f);
  }
};
static_assert(!cuda::detail::ScaledElements<LevelCodes<SignedScales>>);
static_assert(cuda::detail::ScaledElements<NvFp4> && cuda::detail::ScaledElements<NvFp4Rotated>);
static_assert(!cuda::detail::ScaledElements<LevelCodes<LargerScales>>);
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
  static_assert(cuda::is_specialized<Mixed, 64>);
  CHECK(std::string(cuda::value_kernel_name<Mixed, 64>()) == "elements_4_bit");
}
