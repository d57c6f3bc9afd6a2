#include "evaluation/check_builder.hpp"
#include "evaluation/policy_families.hpp"

namespace terse::examples {

void add_baseline_rows(std::vector<PolicyRow>* rows) {
  const auto add = [&](const char* name, const char* description, Family family,
                       const RowMakers& make) {
    rows->push_back({.name = name,
                     .description = description,
                     .family = family,
                     .on_device = false,
                     .make_session = make.session,
                     .make_check = make.check});
  };
  add("kvarn-4k-2v", "KVarN, 4 bits for keys, 2 for values, residual 128 and 16 sinks exact",
      Family::four_bit, quantised<KVarN4K2V>());
  add("kvarn-2", "KVarN, 2 bits, exact tokens as kvarn-4k-2v", Family::two_bit,
      quantised<KVarN2>());
  add("kvquant-3",
      "KVQuant's type: 8 fitted levels a block, 1 % outliers, residual 64, first token exact",
      Family::four_bit, quantised<KVQuant3>());
  add("kvquant-2", "the same with 4 levels", Family::two_bit, quantised<KVQuant2>());
  add("fp8-keys", "keys as fp8, values in 16 bits", Family::eight_bit,
      quantised<KeyValue<Fp8, Identity>>());
  add("fp8-values", "values as fp8, keys in 16 bits", Family::eight_bit,
      quantised<KeyValue<Identity, Fp8>>());
}

}  // namespace terse::examples
