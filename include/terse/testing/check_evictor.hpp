/// Whether an evictor keeps the contract of policy/evictor.hpp.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "terse/config.hpp"
#include "terse/core/span.hpp"
#include "terse/policy/evictor.hpp"
#include "terse/testing/report.hpp"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {
namespace testing {

namespace detail {

/// Tokens of one unit that an evictor works on, stored in entries that begin at `first_token` of
/// the first one, with guards around everything that it may write.
template <Evictor E>
class EvictedUnit {
 public:
  using State = TokenStateOf<E>;
  using List = TokenList<State>;
  static constexpr std::uint64_t guard = 0x5c5c5c5c5c5c5c5cull;

  EvictedUnit(int capacity_tokens, int first_token)
      : first_(first_token),
        live_(static_cast<std::size_t>((first_token + capacity_tokens) / block_tokens) + 3, guard),
        states_((live_.size() - 2) * block_tokens) {
    for (std::size_t i = 1; i + 1 < live_.size(); ++i) live_[i] = 0;
  }

  /// A new token with a random signal of its own, as append feeds it.
  void append(Sequence& random) {
    const int p = length_++;
    word(p) |= bit(p);
    states_[place(p)] = State{};
    if constexpr (terse::detail::signal_of<E>() == Signal::gate_logit) {
      E::admit(states_[place(p)], random.normal());
    }
  }
  /// A random share of attention for every live token, as observe feeds it.
  void observe(Sequence& random) {
    if constexpr (terse::detail::signal_of<E>() == Signal::column_sum) {
      for (int p = 0; p < length_; ++p) {
        const auto share = static_cast<float>(random.below(8)) / 8.0f;
        if (alive(p)) E::observe(states_[place(p)], share);
      }
    }
  }

  void select(const typename E::Params& params, int incoming_tokens) {
    std::vector<typename List::Item> items;
    for (int p = 0; p < length_; ++p) {
      const auto at = static_cast<int>(place(p));
      if (alive(p)) items.push_back({at / block_tokens, at % block_tokens, p});
    }
    std::vector<std::uint64_t> scratch(items.size() + 8, guard);
    List list(items, live_.data() + 1, states_.data(), {scratch.data() + 4, items.size()});
    E::select(list, params, SelectContext{length_, incoming_tokens});
    for (std::size_t i = 0; i < 4; ++i) {
      scratch_intact_ =
          scratch_intact_ && scratch[i] == guard && scratch[scratch.size() - 1 - i] == guard;
    }
  }

  [[nodiscard]] bool alive(int position) const { return (word(position) & bit(position)) != 0; }
  [[nodiscard]] int length() const { return length_; }
  [[nodiscard]] bool intact() const {
    return scratch_intact_ && live_.front() == guard && live_.back() == guard;
  }
  [[nodiscard]] std::vector<bool> survivors() const {
    std::vector<bool> all(static_cast<std::size_t>(length_));
    for (int p = 0; p < length_; ++p) all[static_cast<std::size_t>(p)] = alive(p);
    return all;
  }
  /// Bits that belong to no token and were set nevertheless.
  [[nodiscard]] bool has_stray_bits() const {
    std::size_t set = 0, alive_tokens = 0;
    for (std::size_t i = 1; i + 1 < live_.size(); ++i) {
      set += static_cast<std::size_t>(std::popcount(live_[i]));
    }
    for (int p = 0; p < length_; ++p) alive_tokens += alive(p) ? 1 : 0;
    return set != alive_tokens;
  }

 private:
  [[nodiscard]] std::size_t place(int position) const {
    return static_cast<std::size_t>(first_ + position);
  }
  [[nodiscard]] std::uint64_t& word(int position) { return live_[place(position) / 64 + 1]; }
  [[nodiscard]] std::uint64_t word(int position) const { return live_[place(position) / 64 + 1]; }
  [[nodiscard]] std::uint64_t bit(int position) const {
    return std::uint64_t{1} << (place(position) % 64);
  }

  int first_;
  int length_ = 0;
  bool scratch_intact_ = true;
  std::vector<std::uint64_t> live_;
  std::vector<State> states_;
};

/// Whether the survivors are a prefix and a window (either may be empty).
inline bool is_contiguous(const std::vector<bool>& survivors) {
  int gaps = 0;
  bool seen = false;
  for (std::size_t p = 1; p < survivors.size(); ++p) {
    seen = seen || survivors[p - 1];
    // A gap that begins the sequence, or ends it, separates nothing.
    if (seen && !survivors[p - 1] && survivors[p]) ++gaps;
  }
  return gaps <= 1;
}

/// Lets a sequence grow with evictions at steps of `stride` tokens; both units see the same.
template <Evictor E>
void check_growth(Checker& check, const typename E::Params& params, int stride, int incoming) {
  constexpr int tokens = 400;
  Sequence random(static_cast<std::uint64_t>(stride)), same_random = random, moved_random = random;
  EvictedUnit<E> unit(tokens, 0), twin(tokens, 0), moved(tokens, 37);
  unit.select(params, incoming);
  check.expect(unit.length() == 0 && !unit.has_stray_bits(), "an empty unit gets live tokens");
  while (unit.length() < tokens && check.ok()) {
    for (int i = 0; i < stride && unit.length() < tokens; ++i) {
      unit.append(random);
      twin.append(same_random);
      moved.append(moved_random);
    }
    unit.observe(random);
    twin.observe(same_random);
    moved.observe(moved_random);
    const std::vector<bool> before = unit.survivors();
    unit.select(params, incoming);
    twin.select(params, incoming);
    moved.select(params, incoming);
    const std::vector<bool> after = unit.survivors();
    const std::string at = " (length " + std::to_string(unit.length()) + ", " +
                           std::to_string(incoming) + " incoming)";
    bool killed_only = !unit.has_stray_bits();
    for (std::size_t p = 0; p < after.size(); ++p) {
      killed_only = killed_only && before[p] >= after[p];
    }
    check.expect(killed_only, "select makes tokens live" + at);
    check.expect(unit.intact(), "select writes outside its list's scratch or live bits" + at);
    check.expect(twin.survivors() == after, "select is not deterministic" + at);
    check.expect(moved.survivors() == after,
                 "which tokens are dropped depends on where they are stored" + at);
    if constexpr (!E::scatters) {
      check.expect(is_contiguous(after),
                   "scatters is false, but survivors are not a prefix and a window" + at);
    }
  }
}

}  // namespace detail

/// Checks an evictor with `params`: validate accepts them (and refuses each of `rejected`), only
/// live tokens are dropped, the same ones every time and wherever they are stored, nothing is
/// written outside the list, survivors are contiguous unless `scatters`, signals are declared.
template <Evictor E>
[[nodiscard]] Report check_evictor(const typename E::Params& params,
                                   Span<const typename E::Params> rejected = {}) {
  detail::Checker checker("evictor");
  const Status status = params.validate();
  checker.expect(status.ok(), std::string("validate refuses the parameters: ") + status.text);
  for (const typename E::Params& bad : rejected) {
    const Status refused = bad.validate();
    checker.expect(!refused.ok(), "validate accepts parameters that it should reject");
    checker.expect(refused.ok() || *refused.text != '\0', "validate refuses without a text");
  }
  constexpr Signal signal = terse::detail::signal_of<E>();
  using State = TokenStateOf<E>;
  if constexpr (requires(State & s) { E::observe(s, 0.0f); }) {
    checker.expect(signal == Signal::column_sum,
                   "observe is never called: declare `signal = Signal::column_sum`");
  }
  if constexpr (requires(State & s) { E::admit(s, 0.0f); }) {
    checker.expect(signal == Signal::gate_logit,
                   "admit is never called: declare `signal = Signal::gate_logit`");
  }
  if constexpr (HasPrefix<E>) {
    checker.expect(E::prefix_tokens(params) >= 0, "prefix_tokens is negative");
  }
  for (const int stride : {1, 7, 64, 150}) {
    for (const int incoming : {0, 1, 64}) {
      detail::check_growth<E>(checker, params, stride, incoming);
    }
  }
  return checker.report();
}

}  // namespace testing
}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
