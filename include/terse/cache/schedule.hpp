/// `Schedule<P0, P1, ...>`: policy classes that CacheConfig::layers assigns layers to.
#pragma once

#include <tuple>
#include <type_traits>

#include "terse/cache/config.hpp"
#include "terse/config.hpp"
#include "terse/policy/compose.hpp"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {

template <class... Policies>
struct Schedule {
  static_assert(sizeof...(Policies) > 0, "terse::Schedule: name at least one policy.");
  static constexpr int size = sizeof...(Policies);
  template <std::size_t I>
  using At = std::tuple_element_t<I, std::tuple<PolicyOf<Policies>...>>;
  using Configs = std::tuple<PolicyConfig<PolicyOf<Policies>>...>;
};

namespace detail {

template <class P>
struct ScheduleOf {
  using type = Schedule<P>;
};
template <class... P>
struct ScheduleOf<Schedule<P...>> {
  using type = Schedule<P...>;
};

}  // namespace detail

template <class P>
using ScheduleOf = typename detail::ScheduleOf<P>::type;

}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
