#include "evaluation/check_builder.hpp"
#include "evaluation/policy_families.hpp"

namespace terse::examples {

void add_quantisation_rows(std::vector<PolicyRow>* rows) {
  const auto add = [&](const char* name, const char* description, Family family, bool in_default,
                       const RowMakers& make) {
    rows->push_back({.name = name,
                     .description = description,
                     .family = family,
                     .in_default = in_default,
                     .make_session = make.session,
                     .make_check = make.check});
  };
  add("identity", "16-bit keys and values: the control row", Family::eight_bit, true,
      quantised<Identity>());
  add("fp8", "FP8 E4M3 without scales", Family::eight_bit, true, quantised<Fp8>());
  add("fp8-tail", "the same with the newest 64 to 127 tokens and the first four exact",
      Family::eight_bit, false, quantised<Fp8>(TailSpec{.min_tokens = 64, .sink_tokens = 4}));
  add("int8", "8-bit codes, one factor per token and head", Family::eight_bit, true,
      quantised<Int8>());
  add("q8_0", "llama.cpp's q8_0, rotated", Family::eight_bit, false, quantised<Q8_0>());
  add("q4_0", "llama.cpp's q4_0, rotated", Family::four_bit, true, quantised<Q4_0>());
  add("int4-rotated", "Hadamard, 4-bit codes, one factor per token and head", Family::four_bit,
      true, quantised<Int4Rotated>());
  add("int4-rotated-tail", "the same with the newest 64 to 127 tokens exact", Family::four_bit,
      false, quantised<Int4Rotated>(TailSpec{.min_tokens = 64}));
  add("kivi-4", "KIVI, 4 bits, groups of 32, residual 128", Family::four_bit, true,
      quantised<Kivi4>());
  add("kivi-3", "KIVI at 3 bits (not in the paper), groups of 32, residual 128", Family::four_bit,
      false, quantised<Kivi3>());
  add("kivi-2", "KIVI, 2 bits, groups of 32, residual 128", Family::two_bit, true,
      quantised<Kivi2>());
  add("kivi-2-sinks", "KIVI, 2 bits, and the first four tokens exact", Family::two_bit, false,
      quantised<Kivi2>(TailSpec{.min_tokens = 1, .granule_tokens = 128, .sink_tokens = 4}));
}

}  // namespace terse::examples
