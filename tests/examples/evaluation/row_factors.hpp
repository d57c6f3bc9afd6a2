#pragma once

#include <map>
#include <vector>

#include "evaluation/low_rank.hpp"
#include "evaluation/policies.hpp"
#include "small_model.hpp"

namespace terse_test {

/// Low-rank factors of rows for a model, each made once.
class RowFactors {
 public:
  explicit RowFactors(const terse::examples::LlamaModel& model) : model_(model) {}

  /// Those that a row needs, or null.
  const std::vector<terse::examples::LayerFactors>* of(const terse::examples::PolicyRow& row) {
    if (!row.factors.needed()) return nullptr;
    auto& list = factors_[row.factors];
    if (list.empty()) {
      list =
          factorise(model_, moments_of(model_, random_tokens(400, model_.config().vocabulary, 5)),
                    row.factors);
    }
    return &list;
  }

 private:
  const terse::examples::LlamaModel& model_;
  std::map<terse::examples::FactorRequest, std::vector<terse::examples::LayerFactors>> factors_;
};

}  // namespace terse_test
