#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "evaluation/job_queue.hpp"
#include "model/llama.hpp"

namespace terse::examples {

/// Tokens of the windows of a text of `tokens`: long positions, so that low RoPE frequencies turn,
/// as far as the model's context allows.
inline std::size_t window_tokens(const LlamaModel& model, std::size_t tokens) {
  constexpr int most = 2048;
  return std::min(tokens, static_cast<std::size_t>(std::min(most, model.config().context_tokens)));
}

/// The sum of what `of_window(tokens)` gives for windows of a text (one token or more) that the
/// model's context allows, `add(&sum, part)` by `add`. As many windows at a time as there are
/// `threads`, each on one of them; added in order, so that the result does not depend on their
/// number. `progress` is called, from any thread, with the tokens of each finished window.
template <class OfWindow, class Add>
auto sum_over_windows(const LlamaModel& model, std::span<const std::int32_t> tokens, int threads,
                      const std::function<void(int)>& progress, OfWindow&& of_window, Add&& add) {
  using Sum = decltype(of_window(tokens));
  const std::size_t window = window_tokens(model, tokens.size());
  Sum sum{};
  for (std::size_t begin = 0; begin < tokens.size();) {
    std::vector<std::span<const std::int32_t>> group;
    for (int i = 0; i < threads && begin < tokens.size(); ++i) {
      group.push_back(tokens.subspan(begin, std::min(window, tokens.size() - begin)));
      begin += group.back().size();
    }
    std::vector<Sum> parts(group.size());
    std::vector<std::function<void()>> jobs;
    for (std::size_t i = 0; i < group.size(); ++i) {
      jobs.emplace_back([&, i] {
        parts[i] = of_window(group[i]);
        if (progress) progress(static_cast<int>(group[i].size()));
      });
    }
    run_jobs(threads, jobs);
    for (Sum& part : parts) add(&sum, part);
  }
  return sum;
}

}  // namespace terse::examples
