#pragma once

#include "terse/check/check_report.hpp"

namespace terse::examples {

/// A terse::SafetyCheck of one row, whatever its type. Calls throw where it refuses.
class PolicyCheck {
 public:
  PolicyCheck() = default;
  PolicyCheck(const PolicyCheck&) = delete;
  PolicyCheck& operator=(const PolicyCheck&) = delete;
  virtual ~PolicyCheck() = default;

  [[nodiscard]] virtual int first_scored() const = 0;
  /// Queries `[token, query head, channel]`, keys and values `[token, KV head, channel]` of all
  /// tokens; `output` as queries.
  virtual void attend_layer(int layer, const float* queries, const float* keys, const float* values,
                            float* output) = 0;
  /// Logits `[row, vocabulary]`.
  virtual void add_logits(const float* exact, const float* decoded, int rows, int vocabulary) = 0;
  /// Its layers stay the check's.
  [[nodiscard]] virtual CheckReport report() const = 0;
};

}  // namespace terse::examples
