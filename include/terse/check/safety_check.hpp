/// "Is this model safe at this setting?": a check of a few hundred tokens, for the time at which an
/// engine loads a model.
///
/// The engine runs its forward pass over the same tokens twice. In the first pass attention is its
/// own; in the second it is the check's, which stores each layer's keys and values through the
/// policy and attends to them as decoding would: codes, scales, calibration, tails, sinks and the
/// layers' schedule are those of the cache. The logits of both passes give the expected
/// divergence; attention beside exact attention over the same vectors says which layers lose what.
///
///     auto check = SafetyCheck<Cache>::create(config, policies);
///     first pass, attention as always: exact logits [row, vocabulary] of positions first_scored()
///       to tokens() - 1
///     second pass, for each layer: check->attend(layer, {queries, keys, values}, output)
///     check->add_logits(exact, decoded, rows, vocabulary)
///     check->report()
///
/// Everything is computed on the host, and every pointer is to host memory: an engine that runs on
/// a device copies queries, keys, values and logits over.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <tuple>
#include <type_traits>
#include <utility>

#include "terse/cache/export_plain.hpp"
#include "terse/cache/kv_cache.hpp"
#include "terse/check/check_core.hpp"
#include "terse/check/check_report.hpp"
#include "terse/config.hpp"
#include "terse/cpu/attend.hpp"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {
namespace detail {

template <class Cache>
inline constexpr bool is_kv_cache = false;
template <class L, class P>
inline constexpr bool is_kv_cache<KVCache<L, P>> = true;

template <class S>
inline constexpr bool only_quantises = false;
template <class... P>
inline constexpr bool only_quantises<Schedule<P...>> =
    ((!terse::PolicyOf<P>::projects &&
      std::is_same_v<typename terse::PolicyOf<P>::evictor, NoEviction>)&&...);

}  // namespace detail

/// `Cache`: a KVCache of the engine's policies. Memory is the check's own, allocated at creation
/// and, for the workspace of attention, by attend: this is for load time. Calls on one check must
/// not overlap.
template <class Cache>
class SafetyCheck {
  static_assert(detail::is_kv_cache<Cache>,
                "terse::SafetyCheck: give it the host's terse::KVCache<Layout, Policy>, whatever "
                "the engine's own cache is.");
  static_assert(detail::only_quantises<typename Cache::Classes>,
                "terse::SafetyCheck judges codes: give it a KVCache of the same policies without "
                "their evictors and projectors.");

 public:
  /// A check of one model. Of `model` num_layers, heads, head_dim, rope and layers are read, of
  /// `policies` everything but num_pages and borrows_pages. Errors: those of KVCache::plan, and
  /// invalid_argument (tokens not within 128 and 65536, or so few that rows of the scored half
  /// read nothing decoded, because the tail is exact; compared_rows below 1).
  [[nodiscard]] static Expected<SafetyCheck> create(const CacheConfig& model,
                                                    const typename Cache::Configs& policies = {},
                                                    const CheckSpec& spec = {}) {
    SafetyCheck check;
    if (Status s = check.prepare(model, policies, spec); !s.ok()) return s;
    return Expected<SafetyCheck>(std::move(check));
  }

  [[nodiscard]] int tokens() const noexcept { return core_.tokens(); }
  /// Position of the first row whose logits are scored.
  [[nodiscard]] int first_scored() const noexcept { return core_.first_scored(); }

  /// Attention of all tokens of a layer, once per layer. Layers that share a slot read what the
  /// first of them stored; the others are given its keys and values again, for exact attention.
  ///
  /// \param output `[token, query_head, head_dim]`: attention through the cache, to go on with in
  ///   the second pass; without data it is not wanted, and then the vectors may be those of the
  ///   first pass
  /// \param params as cpu::attend's; causal, and with PlaneRule::everything
  /// Errors: invalid_argument (a layer that the model has not, a stride smaller than a vector,
  /// causal = false), unsupported (another PlaneRule: planes that are not read are another loss
  /// than that of codes), wrong_phase (the layer is checked already), null_pointer, not_finite (in
  /// the vectors, or in what the codec decodes keys to), and those of append and cpu::attend. After
  /// one of them the layer may be tried again with the same vectors; after NaN or infinity in the
  /// vectors, with others.
  template <class ParallelFor = cpu::Serial>
  Status attend(int layer, const CheckInputs& in, const MutableHeadRows& output = {},
                const AttendParams& params = {}, ParallelFor&& parallel_for = {}) {
    if (Status s = core_.check_layer(layer, in, output, params); !s.ok()) return s;
    return cache_->visit_layer(layer, [&](const auto& ref) {
      if (ref.was_appended(part_.sequence.index) == 0) {
        Status s = cache_->append(layer, {.keys = in.keys, .values = in.values});
        if (!s.ok()) return s;
      }
      if (Status s = attend_and_decode(ref, in, params, parallel_for); !s.ok()) return s;
      if (Status s = core_.compare(layer, in, params, parallel_for); !s.ok()) return s;
      if (output.data != nullptr) core_.store_outputs(output);
      return Status{};
    });
  }

  /// Logits of both passes, `[row, vocabulary]`, the next `rows` of positions first_scored() to
  /// tokens() - 1. They may come from another forward pass over the same tokens than attend's,
  /// such as one through the engine's own cache. -infinity says that a token cannot come, and is
  /// allowed in `decoded` where `exact` has it too, in `exact` anywhere. Errors: null_pointer,
  /// invalid_argument (rows or vocabulary not positive), too_many_tokens (more rows than are
  /// scored), not_finite (a row holds NaN or +infinity, or -infinity in `decoded` alone, whose
  /// divergence is infinite; detail: its number in this call); none of the rows is added.
  Status add_logits(const float* exact, const float* decoded, int rows,
                    std::int64_t vocabulary) noexcept {
    return core_.add_logits(exact, decoded, rows, vocabulary);
  }

  /// What was found. Its layers stay the check's. Errors: wrong_phase (a layer was not checked;
  /// detail: the layer).
  [[nodiscard]] Expected<CheckReport> report() const noexcept { return core_.report(); }

 private:
  SafetyCheck() = default;

  /// The fewest tokens at which the first scored row reads a block decoded.
  [[nodiscard]] static std::int64_t tokens_needed(const MemoryPlan& plan) noexcept {
    std::int64_t most = detail::CheckCore::least_tokens;
    for (int c = 0; c < plan.num_classes; ++c) {
      const ClassShape& shape = plan.classes[c].shape;
      if (shape.open) continue;
      const std::int64_t need =
          2 * (std::int64_t{shape.tail.granule_tokens} + shape.tail.min_tokens - 1);
      if (need > most) most = need;
    }
    return most;
  }

  [[nodiscard]] Status prepare(const CacheConfig& model, typename Cache::Configs policies,
                               const CheckSpec& spec) {
    if (Status s = detail::CheckCore::check_spec(spec); !s.ok()) return s;
    CacheConfig config = model;
    config.max_sequences = 1;
    config.max_tokens = config.max_step_tokens = spec.tokens;
    std::apply([](auto&... p) { ((p.num_pages = 0, p.borrows_pages = false), ...); }, policies);
    const Expected<MemoryPlan> plan = Cache::plan(config, policies);
    if (!plan.ok()) return plan.status();
    if (const std::int64_t need = tokens_needed(*plan); spec.tokens < need) {
      return error(StatusCode::invalid_argument,
                   "terse::CheckSpec: too few tokens: half of them lie in the policy's exact tail; "
                   "detail: tokens needed",
                   need);
    }
    if (Status s = core_.prepare(config, spec); !s.ok()) return s;
    if (!pages_.resize(plan->pages_bytes) || !tails_.resize(plan->tails_bytes) ||
        !state_.resize(plan->state_bytes)) {
      return detail::CheckCore::out_of_memory();
    }
    Expected<Cache> cache =
        Cache::create(config, {pages_.view(), tails_.view(), state_.view()}, policies);
    if (!cache.ok()) return cache.status();
    cache_.emplace(std::move(*cache));
    const Expected<SequenceId> sequence = cache_->create_sequence();
    if (!sequence.ok()) return sequence.status();
    // One step of all tokens: what a query reads exactly depends on its position only, and inside
    // a step exact copies of all its tokens are kept.
    part_ = {*sequence, spec.tokens};
    return cache_->begin_step({&part_, 1});
  }

  /// The cache's attention, its vectors as the newest query reads them, and which of them each
  /// compared row does.
  template <class Ref, class ParallelFor>
  [[nodiscard]] Status attend_and_decode(const Ref& ref, const CheckInputs& in,
                                         const AttendParams& params, ParallelFor& parallel_for) {
    const Span<const StepPart> parts{&part_, 1};
    if (!workspace_.resize(cpu::attend_workspace_bytes(ref, parts))) {
      return detail::CheckCore::out_of_memory();
    }
    Status s = cpu::attend(ref, {parts, in.queries}, {core_.outputs()}, workspace_.view(), params,
                           parallel_for);
    if (!s.ok()) return s;
    // No token was evicted: all units see the same ones.
    for (int i = 0; i < core_.compared_rows(); ++i) {
      std::uint64_t* const seen = core_.masks(i);
      for (int b = 0; b < core_.blocks(); ++b) {
        const detail::RowMask mask =
            detail::row_mask(ref, part_.sequence.index, 0, b, core_.position(i), params);
        seen[b] = mask.decoded | mask.exact | mask.sinks;
        seen[core_.blocks() + b] = mask.decoded;
      }
    }
    const std::int32_t page = 0;
    const PageShape shape{1, core_.tokens(), core_.kv_heads(), core_.channels()};
    return export_plain(ref, {&part_.sequence, 1},
                        PlainPages::nhd(Scalar::f32, shape, PageTable::dense(&page, 1, 1)),
                        {.keys = core_.decoded_keys(), .values = core_.decoded_values()});
  }

  detail::CheckCore core_;
  detail::CheckMemory pages_, tails_, state_, workspace_;
  std::optional<Cache> cache_;
  StepPart part_{};
};

}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
