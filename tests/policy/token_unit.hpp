/// A unit of stored tokens for tests of evictors: positions, states, live bits.
#pragma once

#include <cstdint>
#include <vector>

#include "terse/policy/evictor.hpp"

namespace terse::tests {

template <class E>
class TokenUnit {
 public:
  using State = TokenStateOf<E>;
  using List = TokenList<State>;

  /// Tokens at positions 0 ... length - 1, all alive.
  explicit TokenUnit(int length) {
    for (int p = 0; p < length; ++p) append();
  }

  void append() {
    const int p = length_++;
    if (p % block_tokens == 0) {
      live_.push_back(0);
      states_.resize(states_.size() + block_tokens);
    }
    live_.back() |= std::uint64_t{1} << (p % block_tokens);
    states_[static_cast<std::size_t>(p)] = State{};
  }

  State& state(int position) { return states_[static_cast<std::size_t>(position)]; }
  [[nodiscard]] bool alive(int position) const {
    return (live_[static_cast<std::size_t>(position / block_tokens)] >> (position % block_tokens) &
            1u) != 0;
  }
  [[nodiscard]] int length() const { return length_; }
  [[nodiscard]] std::vector<int> survivors() const {
    std::vector<int> positions;
    for (int p = 0; p < length_; ++p) {
      if (alive(p)) positions.push_back(p);
    }
    return positions;
  }

  void kill(int position) {
    live_[static_cast<std::size_t>(position / block_tokens)] &=
        ~(std::uint64_t{1} << (position % block_tokens));
  }

  /// Calls `f(list)` with the list of live tokens.
  template <class F>
  void visit(F&& f) {
    std::vector<typename List::Item> items;
    for (const int p : survivors()) {
      items.push_back({p / block_tokens, p % block_tokens, p});
    }
    std::vector<std::uint64_t> scratch(items.size());
    List list(items, live_.data(), states_.data(), scratch);
    f(list);
  }

  void select(const typename E::Params& params, int incoming = 0) {
    visit([&](List& list) { E::select(list, params, SelectContext{length_, incoming}); });
  }

 private:
  int length_ = 0;
  std::vector<std::uint64_t> live_;
  std::vector<State> states_;
};

/// first, first + 1, ... last - 1.
inline std::vector<int> positions(int first, int last) {
  std::vector<int> p;
  for (int i = first; i < last; ++i) p.push_back(i);
  return p;
}

inline std::vector<int> join(std::vector<int> a, const std::vector<int>& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

}  // namespace terse::tests
