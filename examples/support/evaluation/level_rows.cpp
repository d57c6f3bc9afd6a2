#include "evaluation/check_builder.hpp"
#include "evaluation/policy_families.hpp"

namespace terse::examples {

void add_level_rows(std::vector<PolicyRow>* rows) {
  const auto add = [&](const char* name, const char* description, Family family,
                       const RowMakers& make) {
    rows->push_back({.name = name,
                     .description = description,
                     .family = family,
                     .on_device = false,
                     .make_session = make.session,
                     .make_check = make.check});
  };
  add("nvfp4", "NVFP4: E2M1 elements, an E4M3 scale per 16 channels", Family::four_bit,
      quantised<NvFp4>());
  add("turboquant-4", "TurboQuant, 4 bits, one factor per token and head", Family::four_bit,
      quantised<TurboQuant4>());
  add("turboquant-3", "TurboQuant, 3 bits", Family::four_bit, quantised<TurboQuant3>());
  add("turboquant-2", "TurboQuant, 2 bits", Family::two_bit, quantised<TurboQuant2>());
  const TailSpec window{.min_tokens = 1, .granule_tokens = 128, .sink_tokens = 4};
  add("turboquant-4-tail", "TurboQuant, 4 bits, residual 128, and the first four tokens exact",
      Family::four_bit, quantised<TurboQuant4>(window));
  add("turboquant-3-tail", "TurboQuant, 3 bits, residual 128, and the first four tokens exact",
      Family::four_bit, quantised<TurboQuant3>(window));
  add("turboquant-2-tail", "TurboQuant, 2 bits, residual 128, and the first four tokens exact",
      Family::two_bit, quantised<TurboQuant2>(window));
  add("turboquant-prod-4", "TurboQuant with unbiased products: keys in 3 bits and a sign (QJL)",
      Family::four_bit, quantised<TurboQuantProd4>());
  add("turboquant-prod-3", "the same, keys in 2 bits and a sign", Family::four_bit,
      quantised<TurboQuantProd3>());
  add("turboquant-prod-2", "the same, keys in 1 bit and a sign", Family::two_bit,
      quantised<TurboQuantProd2>());
  add("turboquant-prod-4-tail", "turboquant-prod-4, exact tokens as turboquant-4-tail",
      Family::four_bit, quantised<TurboQuantProd4>(window));
  add("turboquant-prod-3-tail", "turboquant-prod-3, exact tokens as turboquant-4-tail",
      Family::four_bit, quantised<TurboQuantProd3>(window));
  add("turboquant-prod-2-tail", "turboquant-prod-2, exact tokens as turboquant-4-tail",
      Family::two_bit, quantised<TurboQuantProd2>(window));
}

}  // namespace terse::examples
