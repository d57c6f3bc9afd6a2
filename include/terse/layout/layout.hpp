/// Where blocks lie. Layouts hold no data; a cache asks them two questions at compile time.
#pragma once

#include <concepts>
#include <cstdint>

#include "terse/config.hpp"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {

enum class HeadPaging : std::uint8_t {
  shared,    ///< a page holds the blocks of all units of a slot for the same 64 tokens
  per_head,  ///< every unit has its own pages and its own list of them
};

template <class L>
concept Layout = requires {
  { L::paged } -> std::convertible_to<bool>;
  { L::head_paging } -> std::convertible_to<HeadPaging>;
};

}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
