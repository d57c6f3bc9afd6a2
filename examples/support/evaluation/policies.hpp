#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "evaluation/session.hpp"
#include "report/result_row.hpp"

namespace terse::examples {

/// Low-rank factors that a policy needs.
struct FactorRequest {
  double key_share = 0;  ///< rank / (KV heads * head_dim); 0: the policy needs no factors
  double value_share = 0;
  bool both_sides = false;  ///< whitened on the output side too

  [[nodiscard]] bool needed() const { return key_share > 0; }
  // NOLINTNEXTLINE(modernize-use-nullptr): clang-tidy 14 takes the comparison with 0 for a pointer
  friend auto operator<=>(const FactorRequest&, const FactorRequest&) = default;
};

class PolicyCheck;

/// Makes sessions of one row, on either processor.
using SessionMaker = std::function<std::unique_ptr<Session>(const SessionConfig&)>;
/// Makes checks of one row: of all layers of the model, over `max_tokens` tokens, on the host.
using CheckMaker = std::function<std::unique_ptr<PolicyCheck>(const SessionConfig&)>;

/// A named row of the table.
struct PolicyRow {
  std::string name;
  std::string description;
  Family family = Family::eight_bit;
  bool in_default = false;  ///< part of the short table
  FactorRequest factors{};
  bool on_device = true;    ///< programs compile its kernels for a device too
  bool calibrated = false;  ///< its sessions are given a calibration
  SessionMaker make_session;
  CheckMaker make_check{};  ///< empty for policies that evict, project or read planes
};

/// Every row, in the order of the table.
[[nodiscard]] const std::vector<PolicyRow>& policy_rows();

/// The row of that name; throws InputError if there is none.
[[nodiscard]] const PolicyRow& policy_row(const std::string& name);

/// The rows of those names. Throws InputError if there is none of a name, or if one needs a
/// calibration and the file `calibration_path` was not named.
[[nodiscard]] std::vector<const PolicyRow*> policy_rows_of(const std::vector<std::string>& names,
                                                           const std::string& calibration_path);

}  // namespace terse::examples
