/// The contract of an evictor: which stored tokens of one KV unit are dropped.
///
/// An evictor is a type with
///
///   struct Params { ...; Status validate() const; };      // run-time budgets, checked at creation
///   struct TokenState { ... };                            // per stored token and unit; optional
///   static constexpr Signal signal;                       // what it must be fed; default none
///   static constexpr bool scatters;                       // may survivors lie anywhere?
///   static void select(TokenList<TokenState>&, const Params&, const SelectContext&);
///
/// and, according to its signal,
///
///   static void observe(TokenState&, float column_sum);       // Signal::column_sum
///   static void admit(TokenState&, float gate_logit);         // Signal::gate_logit
///
/// For caches on the device all three are TERSE_HOST_DEVICE, and select takes any list:
///
///   template <class Tokens>
///   static void select(Tokens& tokens, const Params&, const SelectContext&);
///
/// There a thread block runs it, all threads together; it only reads states, and its list has no
/// scratch. kill_if and keep_highest (selection.hpp) divide their work among the threads.
///
/// An evictor with Reindex::cache_index also says how many leading positions form the part whose
/// distance to the query shrinks: `static int prefix_tokens(const Params&)`.
#pragma once

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "terse/config.hpp"
#include "terse/core/span.hpp"
#include "terse/core/status.hpp"
#include "terse/policy/record.hpp"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {

/// What an evictor must be fed beside keys and values.
enum class Signal : std::uint8_t {
  none,
  column_sum,  ///< attention probability a token received, summed over rows and the query group
  gate_logit,  ///< one number per token and KV head, given at append
};

struct SelectContext {
  std::int64_t length_tokens = 0;  ///< logical length of the sequence
  int incoming_tokens = 0;         ///< tokens that are about to be appended: leave room for them
};

/// State of an evictor that keeps none.
struct NoTokenState {};

/// The live tokens of one unit, oldest first. Killing a token does not move the others.
template <class TokenState>
class TokenList {
 public:
  /// One stored token: its place, and its logical position.
  struct Item {
    std::int32_t entry;
    std::int32_t token;
    std::int32_t position;
  };

  TokenList(Span<Item> items, std::uint64_t* live, TokenState* states,
            Span<std::uint64_t> scratch) noexcept
      : items_(items), live_(live), states_(states), scratch_(scratch) {}

  [[nodiscard]] TERSE_HOST_DEVICE int size() const noexcept {
    return static_cast<int>(items_.size());
  }
  [[nodiscard]] TERSE_HOST_DEVICE std::int64_t position(int i) const noexcept {
    return item(i).position;
  }

  [[nodiscard]] TERSE_HOST_DEVICE TokenState& state(int i) noexcept {
    if constexpr (std::is_empty_v<TokenState>) {
      return empty_;
    } else {
      return states_[static_cast<std::size_t>(item(i).entry) * block_tokens +
                     static_cast<std::size_t>(item(i).token)];
    }
  }

  TERSE_HOST_DEVICE void kill(int i) noexcept {
    live_[item(i).entry] &= ~(std::uint64_t{1} << static_cast<unsigned>(item(i).token));
  }

  /// Scratch of at least size() numbers, for the evictor's own use.
  [[nodiscard]] Span<std::uint64_t> scratch() const noexcept { return scratch_; }

 private:
  [[nodiscard]] TERSE_HOST_DEVICE const Item& item(int i) const noexcept {
    return items_[static_cast<std::size_t>(i)];
  }

  Span<Item> items_;
  std::uint64_t* live_;
  TokenState* states_;
  Span<std::uint64_t> scratch_;
  [[no_unique_address]] TokenState empty_{};
};

namespace detail {

template <class E>
consteval Signal signal_of() {
  if constexpr (requires { E::signal; }) {
    return E::signal;
  } else {
    return Signal::none;
  }
}

template <class E>
struct TokenStateType {
  using type = NoTokenState;
};
template <class E>
  requires requires { typename E::TokenState; }
struct TokenStateType<E> {
  using type = typename E::TokenState;
};

}  // namespace detail

template <class E>
using TokenStateOf = typename detail::TokenStateType<E>::type;

/// Bytes of evictor state per stored token and unit.
template <class E>
inline constexpr std::size_t token_state_bytes = std::is_empty_v<TokenStateOf<E>>
                                                     ? 0
                                                     : sizeof(TokenStateOf<E>);

template <class E>
concept CanSelect = requires(TokenList<TokenStateOf<E>>& list, const typename E::Params& params,
                             const SelectContext& context) {
  E::select(list, params, context);
};

template <class E>
concept Evictor = requires {
  typename E::Params;
}
&&CanSelect<E>&& requires {
  { E::scatters } -> std::convertible_to<bool>;
};

template <class E>
concept CanValidate = requires(const typename E::Params& params) {
  { params.validate() } -> std::same_as<Status>;
};

template <class E>
concept HasPrefix = requires(const typename E::Params& params) {
  { E::prefix_tokens(params) } -> std::convertible_to<int>;
};

/// The evictor of a policy that drops nothing.
struct NoEviction {
  struct Params {
    [[nodiscard]] static constexpr Status validate() noexcept { return {}; }
  };
  static constexpr bool scatters = false;
  template <class Tokens>
  TERSE_HOST_DEVICE static void select(Tokens&, const Params&, const SelectContext&) noexcept {}
};

/// Whether a policy's tokens may be dropped; else entry after entry holds all blocks.
template <class Policy>
inline constexpr bool evicts_tokens = !std::is_same_v<typename Policy::evictor, NoEviction>;

}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
