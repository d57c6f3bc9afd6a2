/// Checks of rows that neither evict nor project.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <utility>

#include "terse/check/safety_check.hpp"

#include "evaluation/check.hpp"
#include "evaluation/policy_check.hpp"
#include "evaluation/row_builder.hpp"
#include "report/input_error.hpp"

namespace terse::examples {

namespace detail {

template <class Cache>
class CheckOfCache final : public PolicyCheck {
 public:
  CheckOfCache(SafetyCheck<Cache> made, const LlamaConfig& model)
      : made_(std::move(made)), model_(model) {}
  [[nodiscard]] int first_scored() const override { return made_.first_scored(); }
  void attend_layer(int layer, const float* queries, const float* keys, const float* values,
                    float* output) override {
    const auto rows = [&](const float* data, int heads) {
      return HeadRows::dense(data, Scalar::f32, heads, model_.head_dim);
    };
    check(made_.attend(
        layer,
        {rows(queries, model_.query_heads), rows(keys, model_.kv_heads),
         rows(values, model_.kv_heads)},
        MutableHeadRows::dense(output, Scalar::f32, model_.query_heads, model_.head_dim)));
  }
  void add_logits(const float* exact, const float* decoded, int rows, int vocabulary) override {
    check(made_.add_logits(exact, decoded, rows, vocabulary));
  }
  [[nodiscard]] CheckReport report() const override {
    auto made = made_.report();
    check(made.status());
    return *made;
  }

 private:
  SafetyCheck<Cache> made_;
  LlamaConfig model_;
};

}  // namespace detail

/// A maker of checks for a policy that drops nothing. They throw InputError where a model or the
/// number of tokens does not suit the policy.
template <class Policy>
CheckMaker check_of(std::optional<TailSpec> tail = {}) {
  return [tail](const SessionConfig& config) -> std::unique_ptr<PolicyCheck> {
    using Cache = KVCache<Shared, Policy>;
    const LlamaConfig& model = config.model->config();
    typename Cache::Configs policies;
    std::get<0>(policies).tail = tail;
    if constexpr (uses_calibration<PolicyOf<Policy>>) {
      if (config.calibration != nullptr) {
        std::get<0>(policies).calibration = config.calibration->view();
      }
    }
    auto made = SafetyCheck<Cache>::create({.num_layers = model.layers,
                                            .num_query_heads = model.query_heads,
                                            .num_kv_heads = model.kv_heads,
                                            .head_dim = model.head_dim},
                                           policies, {.tokens = config.max_tokens});
    if (const Status s = made.status(); s.code == StatusCode::invalid_argument) {
      // Such as fewer tokens than the policy keeps exact.
      throw InputError(std::string(s.text) + " (" + std::to_string(s.detail) + ")");
    }
    check(made.status());
    return std::make_unique<detail::CheckOfCache<Cache>>(std::move(*made), model);
  };
}

/// How a policy that drops nothing is run and checked.
struct RowMakers {
  SessionMaker session;
  CheckMaker check;
};
template <class Policy>
RowMakers quantised(std::optional<TailSpec> tail = {}) {
  return {session_of<Policy>(tail), check_of<Policy>(tail)};
}

}  // namespace terse::examples
