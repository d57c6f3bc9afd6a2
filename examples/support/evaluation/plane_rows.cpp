#include "evaluation/policy_families.hpp"
#include "evaluation/row_builder.hpp"

namespace terse::examples {

void add_plane_rows(std::vector<PolicyRow>* rows) {
  const auto add = [&](const char* name, const char* description, Family family, auto make,
                       bool on_device = false) {
    rows->push_back({.name = name,
                     .description = description,
                     .family = family,
                     .on_device = on_device,
                     .make_session = make});
  };
  const auto within = [](float logits, float values) {
    return PlaneReading{PlaneRule::tolerance, logits, values};
  };
  add("aligned-kv-exponents", "AlignedKV: fp16 as planes of 8 + 4 + 4 bits, read by exponents",
      Family::eight_bit, planes_session<AlignedKV>({.rule = PlaneRule::exponents}));
  add("aligned-kv-0.1", "the same, read so that logits stay within 0.1, outputs within 3 %",
      Family::eight_bit, planes_session<AlignedKV>(within(0.1f, 0.03f)), true);
  add("aligned-kv-0.5", "the same, within 0.5 and 10 %", Family::eight_bit,
      planes_session<AlignedKV>(within(0.5f, 0.1f)));
  add("aligned-fixed16-0.5", "16-bit fixed point as planes of 8 + 4 + 4 bits, within 0.5 and 10 %",
      Family::eight_bit, planes_session<AlignedFixed16>(within(0.5f, 0.1f)));
  add("aligned-int8", "int8, min-max, as planes of 4 + 4 bits, read whole", Family::eight_bit,
      planes_session<AlignedInt8>({}));
  add("aligned-int8-0.5", "the same, within 0.5 and 10 %", Family::eight_bit,
      planes_session<AlignedInt8>(within(0.5f, 0.1f)));
  add("aligned-int4", "int4, min-max, as planes of 2 + 2 bits, read whole", Family::four_bit,
      planes_session<AlignedInt4>({}));
  add("aligned-int4-1", "the same, within 1 and 20 %", Family::four_bit,
      planes_session<AlignedInt4>(within(1.0f, 0.2f)));
}

}  // namespace terse::examples
