/// Trellis of 4 states: codes of b bits that stand for 2^(b + 1) levels, of which the channels
/// before leave each code half.
///
/// The code is Ungerboeck's of rate 1/2 (Channel coding with multilevel/phase signals, IEEE
/// Transactions on Information Theory 28(1), 1982), taken for quantization as in Trellis coded
/// quantization of memoryless and Gauss-Markov sources (Marcellin and Fischer, IEEE Transactions on
/// Communications 38(1), 1990); QTIP (arXiv 2406.11235) is a recent relative. Its feed-forward
/// form makes decoding random access. With channels in the order of rounding, the last first:
///
///   code[t] = 2 m + x[t]               x: the bit of the path, 0 before the first channel
///   index   = 4 m + 2 z1 + z0          z1 = x[t] ^ x[t - 2], z0 = x[t - 1]
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>

#include "terse/config.hpp"
#include "terse/core/math.hpp"
#include "terse/core/multiply_add.hpp"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {

template <int Bits>
struct Trellis {
  static_assert(Bits >= 1 && Bits <= 4);

  static constexpr int num_states = 4;
  static constexpr unsigned num_levels = 2u << Bits;
  /// What states cost that no path has led to.
  static constexpr float unreachable = std::numeric_limits<float>::infinity();

  /// Levels for N(0, 1), rising with the index. They are fitted to the paths: Lloyd's iteration
  /// over 2^21 normal numbers, each level moved to the mean of the numbers that the best paths give
  /// it and to that of its mirror image. The mean squared error of 256 numbers is 0.317, 0.0887,
  /// 0.0243, 0.0064 for 1, 2, 3, 4 bits (of the best uniform grids 0.363, 0.119, 0.0374, 0.0115).
  TERSE_HOST_DEVICE static constexpr float level(unsigned index) noexcept {
    constexpr Table table = make_levels();
    return table.numbers[index];
  }

  /// The level's index of a code; of those before it, in the order of rounding, the path's bits are
  /// read.
  TERSE_HOST_DEVICE static constexpr unsigned index_of(unsigned code, unsigned before,
                                                       unsigned two_before) noexcept {
    return (code >> 1) * 4 + ((code ^ two_before) & 1u) * 2 + (before & 1u);
  }

  /// The levels with z1 and z0, rising, of which m of a code 2 m + x chooses one.
  struct Subset {
    static constexpr int size = num_levels / 4;
    float levels[size];
    float upper_ends[size];  ///< the middles to the next one
  };
  TERSE_HOST_DEVICE static constexpr Subset subset(unsigned z1, unsigned z0) noexcept {
    Subset result{};
    for (unsigned m = 0; m < num_levels / 4; ++m) {
      const unsigned index = 4 * m + 2 * z1 + z0;
      result.levels[m] = level(index);
      const bool is_last = index + 4 >= num_levels;
      result.upper_ends[m] = is_last ? unreachable : (level(index) + level(index + 4)) / 2.0f;
    }
    return result;
  }

  /// A level that leads on from a state, and what the path costs with it.
  struct Step {
    float cost;
    unsigned m;
    float level;
  };
  /// To the nearest level of a subset, the lower one where two are equally near.
  TERSE_HOST_DEVICE static Step step_to(float target, const Subset& of, float weight,
                                        float cost) noexcept {
    Step step{cost, 0, of.levels[0]};
    for (int m = 1; m < Subset::size; ++m) {
      if (!(target > of.upper_ends[m - 1])) continue;
      step.m = static_cast<unsigned>(m);
      step.level = of.levels[m];
    }
    const float rest = target - step.level;
    step.cost += rounded_product(weight, rounded_product(rest, rest));
    return step;
  }

  /// The cheapest path that is found with one survivor a state, each with the errors that it has
  /// passed on itself; without `feedback` there is none cheaper. Of equally cheap ways to a state
  /// the one from the lower state is kept; a state is x[t] + 2 x[t - 1].
  ///
  /// `u [width]`, `weight [width]`, and `feedback [width, width]` or null: of errors e the cost is
  /// that of CalibrationLayout. Null `weight`: they all count alike. Writes `codes [width]`;
  /// `passed [4, stride]` and `history [4 width]` are room to work in.
  TERSE_HOST_DEVICE static void find_path(const float* u, int width, const float* weight,
                                          const float* feedback, float* passed, int stride,
                                          std::uint8_t* history, std::uint8_t* codes) noexcept {
    constexpr Subsets subsets{{subset(0, 0), subset(0, 1), subset(1, 0), subset(1, 1)}};
    float cost[num_states] = {0.0f, unreachable, unreachable, unreachable};
    float* of_state[num_states];  // sum over i > j of feedback[i][j] * error[i], a survivor's
    for (int s = 0; s < num_states; ++s) {
      of_state[s] = passed + std::ptrdiff_t{s} * stride;
      for (int c = 0; c < width; ++c) of_state[s][c] = 0.0f;
    }
    for (int j = width - 1; j >= 0; --j) {
      const float counts = weight == nullptr ? 1.0f : weight[j];
      const float* row = feedback == nullptr ? nullptr : feedback + std::ptrdiff_t{j} * width;
      float next_cost[num_states];
      float* next_of_state[num_states];
      // The two states with x[t - 1] = before lead to the two with the same bit one further back.
      for (unsigned before = 0; before < 2; ++before) {
        const unsigned from[2] = {before, before + 2};
        unsigned parent[2];
        float error[2];
        for (unsigned x = 0; x < 2; ++x) {
          const Step lower = step_to(u[j] + of_state[from[0]][j], subsets.of[2 * x + before],
                                     counts, cost[from[0]]);
          const Step upper = step_to(u[j] + of_state[from[1]][j], subsets.of[2 * (x ^ 1u) + before],
                                     counts, cost[from[1]]);
          parent[x] = upper.cost < lower.cost ? 1 : 0;
          const Step& best = parent[x] == 1 ? upper : lower;
          const unsigned to = x + 2 * before;
          next_cost[to] = best.cost;
          error[x] = u[j] - best.level;
          history[num_states * j + static_cast<int>(to)] =
              static_cast<std::uint8_t>(history_entry(best, x, parent[x]));
        }
        // Each goes on in its parent's memory, but for the second of two with the same one.
        float* own[2] = {of_state[from[parent[0]]], of_state[from[parent[1]]]};
        if (parent[0] == parent[1]) {
          own[1] = of_state[from[1 - parent[0]]];
          for (int c = 0; c < j; ++c) own[1][c] = own[0][c];
        }
        for (unsigned x = 0; x < 2; ++x) {
          if (row != nullptr) add_scaled(error[x], row, j, own[x]);
          next_of_state[x + 2 * before] = own[x];
        }
      }
      for (int s = 0; s < num_states; ++s) {
        cost[s] = next_cost[s];
        of_state[s] = next_of_state[s];
      }
    }
    unsigned state = cheapest(cost);
    for (int j = 0; j < width; ++j) {
      codes[j] = static_cast<std::uint8_t>(
          step_back(history[num_states * j + static_cast<int>(state)], &state));
    }
  }

  // --- a search's history, of which each channel has an entry below 32 for each state ---------

  /// Of a step with path bit `x` from the lower (0) or upper (1) parent.
  TERSE_HOST_DEVICE static unsigned history_entry(const Step& step, unsigned x,
                                                  unsigned parent) noexcept {
    return 2 * step.m + x + parent * parent_bit;
  }
  /// The state of the least cost; of equals the lower one.
  TERSE_HOST_DEVICE static unsigned cheapest(const float (&cost)[num_states]) noexcept {
    unsigned state = 0;
    for (unsigned s = 1; s < num_states; ++s) state = cost[s] < cost[state] ? s : state;
    return state;
  }
  /// The code of a state's entry; `state` becomes that of the channel behind.
  TERSE_HOST_DEVICE static unsigned step_back(unsigned entry, unsigned* state) noexcept {
    *state = *state / 2 + entry / parent_bit * 2;
    return entry % parent_bit;
  }

 private:
  static constexpr unsigned parent_bit = 16;  ///< of a history's entry, above the code

  struct Subsets {
    Subset of[4];  ///< 2 z1 + z0
  };

  struct Table {
    float numbers[num_levels];
  };
  TERSE_HOST_DEVICE static constexpr Table make_levels() noexcept {
    Table table{};
    for (unsigned i = 0; i < num_levels / 2; ++i) {
      table.numbers[num_levels / 2 + i] = positive_level(i);
      table.numbers[num_levels / 2 - 1 - i] = -positive_level(i);
    }
    return table;
  }
  TERSE_HOST_DEVICE static constexpr float positive_level(unsigned i) noexcept {
    if constexpr (Bits == 1) {
      constexpr float levels[] = {0.3852f, 1.1932f};
      return levels[i];
    } else if constexpr (Bits == 2) {
      constexpr float levels[] = {0.1734f, 0.6324f, 1.0633f, 1.8664f};
      return levels[i];
    } else if constexpr (Bits == 3) {
      constexpr float levels[] = {0.0925f, 0.3199f, 0.5201f, 0.7687f,
                                  1.0207f, 1.3392f, 1.7708f, 2.4669f};
      return levels[i];
    } else {
      constexpr float levels[] = {0.0498f, 0.1707f, 0.2719f, 0.3946f, 0.5021f, 0.6299f,
                                  0.7486f, 0.8860f, 1.0204f, 1.1759f, 1.3400f, 1.5338f,
                                  1.7673f, 2.0624f, 2.4553f, 3.0639f};
      return levels[i];
    }
  }
};

}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
