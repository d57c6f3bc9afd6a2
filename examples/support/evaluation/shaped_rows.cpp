#include "evaluation/check_builder.hpp"
#include "evaluation/policy_families.hpp"

namespace terse::examples {

void add_shaped_rows(std::vector<PolicyRow>* rows) {
  const auto add = [&](const char* name, const char* description, Family family, bool in_default,
                       bool calibrated, const RowMakers& make, bool on_device = true) {
    rows->push_back({.name = name,
                     .description = description,
                     .family = family,
                     .in_default = in_default,
                     .on_device = on_device,
                     .calibrated = calibrated,
                     .make_session = make.session,
                     .make_check = make.check});
  };
  add("shaped-4", "error-shaped grid, 4 bits, the newest 64 to 127 tokens and 4 sinks exact",
      Family::four_bit, true, true, quantised<Shaped4>());
  add("shaped-4-no-tail", "the same with every token decoded", Family::four_bit, false, true,
      quantised<Shaped4>(TailSpec{}));
  add("shaped-4-sinks", "the same with the first four tokens exact and all others decoded",
      Family::four_bit, false, true, quantised<Shaped4>(TailSpec{.sink_tokens = 4}));
  add("shaped-4-searched", "the same, each token with the best of five steps", Family::four_bit,
      false, true, quantised<Shaped4Searched>(), false);
  add("shaped-3", "error-shaped grid, 3 bits, tail and sinks as shaped-4", Family::four_bit, false,
      true, quantised<Shaped3>());
  add("shaped-3-sinks", "the same with 3 bits, exact tokens as shaped-4-sinks", Family::four_bit,
      false, true, quantised<Shaped3>(TailSpec{.sink_tokens = 4}));
  add("shaped-3k-2v", "error-shaped grid, 3 bits for keys, 2 for values", Family::two_bit, false,
      true, quantised<Shaped3K2V>());
  add("shaped-2", "error-shaped grid, 2 bits, tail and sinks as shaped-4", Family::two_bit, true,
      true, quantised<Shaped2>());
  using InInt8 = Compose<Shaped2, TailCodec<Int8>>;
  add("shaped-2-int8-tail", "shaped-2 with its tail in 8 bits", Family::two_bit, false, true,
      quantised<InInt8>());
  add("shaped-2-long-int8-tail", "the same with the newest 192 to 255 tokens in 8 bits",
      Family::two_bit, false, true,
      quantised<InInt8>(TailSpec{.min_tokens = 192, .sink_tokens = 4}));
  add("shaped-2k-1v", "error-shaped grid, 2 bits for keys, 1 for values", Family::two_bit, false,
      true, quantised<Shaped2K1V>(), false);
  add("shaped-2-uncalibrated", "the same grid rotated only, without calibration", Family::two_bit,
      false, false, quantised<Shaped2>());
  add("shaped-trellis-4", "error-shaped trellis, 4 bits, tail and sinks as shaped-4",
      Family::four_bit, false, true, quantised<ShapedTrellis4>(), false);
  add("shaped-trellis-3", "error-shaped trellis, 3 bits, tail and sinks as shaped-4",
      Family::four_bit, false, true, quantised<ShapedTrellis3>(), false);
  add("shaped-trellis-3k-2v", "error-shaped trellis, 3 bits for keys, 2 for values",
      Family::two_bit, false, true, quantised<ShapedTrellis3K2V>(), false);
  add("shaped-trellis-2", "error-shaped trellis, 2 bits, tail and sinks as shaped-4",
      Family::two_bit, false, true, quantised<ShapedTrellis2>(), false);
  add("shaped-trellis-2-long-int8-tail",
      "shaped-trellis-2 with the newest 192 to 255 tokens in 8 bits", Family::two_bit, false, true,
      quantised<Compose<ShapedTrellis2, TailCodec<Int8>>>(
          TailSpec{.min_tokens = 192, .sink_tokens = 4}),
      false);
  add("shaped-trellis-2k-1v", "error-shaped trellis, 2 bits for keys, 1 for values",
      Family::two_bit, false, true, quantised<ShapedTrellis2K1V>(), false);
}

}  // namespace terse::examples
