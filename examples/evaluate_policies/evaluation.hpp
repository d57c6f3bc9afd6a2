#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "evaluation/calibration.hpp"
#include "evaluation/passkey.hpp"
#include "evaluation/policies.hpp"
#include "model/llama.hpp"
#include "report/progress.hpp"
#include "report/result_row.hpp"
#include "settings.hpp"

namespace terse::examples {

/// Everything that one run computes, from a loaded model and texts to rows.
class Evaluation {
 public:
  Evaluation(const Settings& settings, LlamaModel& model, std::vector<const PolicyRow*> policies);

  /// Windows of `tokens`, each with a second half that is scored.
  void add_window(std::vector<std::int32_t> tokens) { windows_.push_back(std::move(tokens)); }
  void set_passkeys(std::vector<PasskeyCase> passkeys) { passkeys_ = std::move(passkeys); }
  /// Tokens for low-rank factors, and for a calibration where none is given.
  void set_calibration_text(std::vector<std::int32_t> tokens) {
    calibration_text_ = std::move(tokens);
  }
  void set_calibration(Calibration calibration) { calibration_ = std::move(calibration); }
  [[nodiscard]] bool needs_factors() const;
  /// A policy wants a calibration, and none is given.
  [[nodiscard]] bool lacks_calibration() const;

  /// Runs all, policies in parallel on the settings' threads, and gives the rows in order.
  [[nodiscard]] std::vector<ResultRow> run();

  /// Perplexity of all scored positions with plain 16-bit keys and values, outside any cache; known
  /// after `run`.
  [[nodiscard]] double reference_perplexity() const { return reference_perplexity_; }

  /// First and last scored position of a window, end exclusive: position p predicts token p + 1.
  [[nodiscard]] static std::pair<int, int> scored(int window_tokens) {
    return {window_tokens / 2, window_tokens - 1};
  }

 private:
  struct Work;
  [[nodiscard]] SessionConfig session_config(const PolicyRow& row, int tokens) const;
  void make_factors(ProgressBar& progress);
  void make_calibration(ProgressBar& progress);
  void score_windows(ProgressBar& progress, std::vector<Work>* work);
  void score_passkeys(ProgressBar& progress, std::vector<Work>* work);
  [[nodiscard]] double total_weight() const;

  const Settings& settings_;
  LlamaModel& model_;
  std::vector<const PolicyRow*> policies_;
  std::vector<std::vector<std::int32_t>> windows_;
  std::vector<PasskeyCase> passkeys_;
  std::vector<std::int32_t> calibration_text_;
  std::map<FactorRequest, std::vector<LayerFactors>> factors_;
  std::optional<Calibration> calibration_;
  double reference_perplexity_ = not_measured;
};

}  // namespace terse::examples
