/// A plain model of a cache: every token's vectors in ordinary containers, with rules of its own
/// for sealing, liveness and pages. Tests drive it beside a KVCache and compare the two.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <vector>

#include "terse/terse.hpp"

#include "support/plain_evictors.hpp"

namespace terse::tests {

/// Keys and values of one token of a unit, `[stream, width]`, in the codec's basis.
struct PlainVectors {
  std::vector<float> sink_keys, sink_values;  ///< rounded to 16 bits
  std::vector<float> tail_keys, tail_values;  ///< as the tail has them; exact where there is none
  std::vector<float> keys, values;            ///< as decoded; empty until the block is complete
};

struct PlainToken {
  std::int64_t position = 0;
  bool live = true;
  float score = 0;  ///< evictor state
  std::shared_ptr<const PlainVectors> data;
};

/// A page is a shared pointer: its owners are counted by the standard library.
using PlainPage = std::shared_ptr<int>;

struct PlainBlock {
  PlainPage page;                              ///< null while the tokens lie in the tail only
  std::vector<std::int64_t> first;             ///< `[unit of the row]`
  std::vector<std::vector<PlainToken>> units;  ///< `[unit of the row][token]`
  bool in_order = true;                        ///< a token's place is its distance to the first
};

struct PlainSequence {
  bool alive = false;
  std::int64_t length = 0;
  int pending = 0;
  std::int64_t origin = 0, sealed_end = 0, exact_begin = 0, decoded_before = 0;
  std::vector<std::vector<PlainBlock>> rows;  ///< `[slot, row][block]`
};

/// `[token, unit, stream, width]` of one sequence's share of an append.
struct PlainInputs {
  const float* keys = nullptr;
  const float* values = nullptr;
  const float* gate_logits = nullptr;  ///< `[token, kv_head]`
};

template <Layout L, class Policy>
class PlainModel {
 public:
  using KeyCodec = typename Policy::key_codec;
  using ValueCodec = typename Policy::value_codec;
  using TailForm = typename Policy::tail_codec;
  using Evictor = typename Policy::evictor;

  PlainModel(const ClassShape& shape, const typename Evictor::Params& eviction)
      : shape_(shape),
        eviction_(eviction),
        sequences_(static_cast<std::size_t>(shape.sequences)),
        held_(std::make_shared<std::int64_t>(0)) {}

  [[nodiscard]] const PlainSequence& sequence(int i) const { return at(sequences_, i); }
  [[nodiscard]] const ClassShape& shape() const { return shape_; }
  [[nodiscard]] const typename Evictor::Params& eviction() const { return eviction_; }
  [[nodiscard]] const std::vector<PlainBlock>& row(int sequence, int slot, int row) const {
    return at(at(sequences_, sequence).rows, slot * shape_.rows + row);
  }

  void create(int i) {
    PlainSequence fresh;
    fresh.alive = true;
    fresh.rows.resize(static_cast<std::size_t>(shape_.slots * shape_.rows));
    at(sequences_, i) = std::move(fresh);
  }
  void release(int i) { at(sequences_, i) = PlainSequence{}; }

  [[nodiscard]] StatusCode can_fork(int source) const {
    std::int64_t copies = 0, alive = 0;
    for (const auto& blocks : sequence(source).rows) {
      copies += !blocks.empty() && is_open_block(source, blocks.back()) ? 1 : 0;
    }
    if (L::paged && copies > pages_free()) return StatusCode::no_free_pages;
    for (const PlainSequence& s : sequences_) alive += s.alive ? 1 : 0;
    return alive == shape_.sequences ? StatusCode::too_many_sequences : StatusCode::ok;
  }
  void fork(int source, int target) {
    at(sequences_, target) = sequence(source);
    if (!L::paged) return;
    for (auto& blocks : at(sequences_, target).rows) {
      for (PlainBlock& b : blocks) {
        if (is_open_block(source, b)) b.page = make_page();
      }
    }
  }

  void truncate(int i, std::int64_t length) {
    if (length < sequence(i).length) shrink(i, length);
  }

  // --- steps

  [[nodiscard]] StatusCode can_begin(const std::vector<StepPart>& parts) const {
    std::int64_t pages = 0;
    for (const StepPart& part : parts) {
      const PlainSequence& s = sequence(part.sequence.index);
      const std::int64_t end = s.length + part.tokens;
      const std::int64_t blocks = grid_blocks(s, end) - grid_blocks(s, s.length);
      for (const auto& row : s.rows) {
        if (static_cast<std::int64_t>(row.size()) + blocks > shape_.entries) {
          return StatusCode::too_many_tokens;
        }
        pages += must_copy_newest(s, row) ? 1 : 0;
      }
      pages += static_cast<std::int64_t>(s.rows.size()) *
               (shape_.open ? blocks : (sealed_by_rule(s, end) - s.sealed_end) / block_tokens);
    }
    return L::paged && pages > pages_free() ? StatusCode::no_free_pages : StatusCode::ok;
  }

  void begin(const std::vector<StepPart>& parts) {
    parts_ = parts;
    for (const StepPart& part : parts) {
      PlainSequence& s = at(sequences_, part.sequence.index);
      const std::int64_t end = s.length + part.tokens;
      if (shape_.open) {
        s.exact_begin = s.sealed_end;
      } else {  // the ring keeps as many blocks as it has, the newest ones
        const std::int64_t kept = grid_blocks(s, end) - shape_.ring_blocks;
        s.exact_begin =
            std::min(s.sealed_end, std::max(s.exact_begin, s.origin + kept * block_tokens));
      }
      for (auto& row : s.rows) {
        if (must_copy_newest(s, row)) row.back().page = make_page();
        for (std::int64_t b = grid_blocks(s, s.length); b < grid_blocks(s, end); ++b) {
          PlainBlock block;
          block.first.assign(per_row(), s.origin + b * block_tokens);
          block.units.resize(per_row());
          row.push_back(std::move(block));
        }
        for (PlainBlock& b : row) {
          const bool written = b.first[0] >= s.sealed_end &&
                               (shape_.open || b.first[0] + block_tokens <= sealed_by_rule(s, end));
          if (L::paged && written && b.page == nullptr) b.page = make_page();
        }
      }
      s.pending = part.tokens;
    }
  }

  void append(int slot, std::size_t part, const PlainInputs& in) {
    PlainSequence& s = at(sequences_, parts_[part].sequence.index);
    for (int i = 0; i < parts_[part].tokens; ++i) {
      for (int u = 0; u < shape_.unit.units; ++u) {
        PlainToken token;
        token.position = s.length + i;
        const std::size_t vector =
            static_cast<std::size_t>(i) * units() + static_cast<std::size_t>(u);
        auto data = std::make_shared<PlainVectors>();
        data->tail_keys = turned<KeyCodec>(Side::key, in.keys + vector * key_floats());
        data->tail_values = turned<ValueCodec>(Side::value, in.values + vector * value_floats());
        data->sink_keys = rounded(data->tail_keys);
        data->sink_values = rounded(data->tail_values);
        if (!shape_.open) {
          data->tail_keys = in_tail_form(Side::key, data->tail_keys);
          data->tail_values = in_tail_form(Side::value, data->tail_values);
        }
        token.data = data;
        token.score = admitted(in.gate_logits, i, u);
        const auto first = s.origin + (token.position - s.origin) / block_tokens * block_tokens;
        auto& blocks = at(s.rows, slot * shape_.rows + u / shape_.units_per_row);
        for (PlainBlock& b : blocks) {
          if (b.first[0] != first || first < s.sealed_end) continue;
          auto& tokens = at(b.units, u % shape_.units_per_row);
          tokens.push_back(token);
          if (shape_.open) {
            decode(tokens, tokens.size() - 1, tokens.size(), false);
          } else if (tokens.size() == block_tokens) {
            decode(tokens, 0, tokens.size(), false);
          }
        }
      }
    }
  }

  /// `accepted` tokens of each part stay; 0 for all parts is abandon_step.
  void end_step(const std::vector<int>& accepted) {
    for (std::size_t i = 0; i < parts_.size(); ++i) {
      PlainSequence& s = at(sequences_, parts_[i].sequence.index);
      s.pending = 0;
      shrink(parts_[i].sequence.index, s.length + accepted[i]);
    }
  }

  // --- eviction and compaction

  /// Adds `score(position, unit)` to the evictor state of live tokens.
  template <class Score>
  void observe(int i, int slot, Score&& score) {
    for_each_unit(i, slot, [&](int unit, std::vector<PlainToken*>& tokens) {
      for (PlainToken* t : tokens) t->score += score(t->position, unit);
    });
  }

  /// Returns the pages that became free.
  std::int64_t evict(int i, int incoming_tokens) {
    const std::int64_t before = *held_;
    PlainSequence& s = at(sequences_, i);
    for (int slot = 0; slot < shape_.slots; ++slot) {
      for_each_unit(i, slot, [&](int, std::vector<PlainToken*>& tokens) {
        const SelectContext context{s.length, incoming_tokens};
        PlainEvictor<Evictor>::select(tokens, eviction_, context);
      });
    }
    if (L::paged) {
      for (auto& row : s.rows) std::erase_if(row, [&](auto& b) { return is_dead(s, b); });
    }
    return before - *held_;
  }

  [[nodiscard]] CompactPlan plan_compact(int i) const {
    CompactPlan plan;
    const PlainSequence& s = sequence(i);
    for (const auto& row : s.rows) {
      if constexpr (!Evictor::scatters) {
        plan_join(s, row, &plan);
        continue;
      }
      const std::int64_t sealed = sealed_blocks(s, row), packed = packed_blocks(s, row);
      if (packed >= sealed) continue;
      for (std::int64_t b = 0; b < sealed; ++b) {
        const PlainBlock& block = row[static_cast<std::size_t>(b)];
        if (b < packed) take_page(&plan);  // a new page before the old one is given up
        give_page(block, &plan);
        plan.tokens_moved += live_tokens(block);
      }
    }
    if (!moves_exactly) plan.tokens_reencoded = plan.tokens_moved;
    return plan;
  }

  [[nodiscard]] StatusCode can_compact(int i, bool allow_reencoding) const {
    const CompactPlan plan = plan_compact(i);
    if (plan.tokens_reencoded > 0 && !allow_reencoding) return StatusCode::would_be_lossy;
    return L::paged && plan.pages_needed > pages_free() ? StatusCode::no_free_pages
                                                        : StatusCode::ok;
  }

  void compact(int i) {
    PlainSequence& s = at(sequences_, i);
    bool moved = false;
    for (auto& row : s.rows) {
      if constexpr (!Evictor::scatters) {
        moved = join(s, row) || moved;
        continue;
      }
      const auto sealed = static_cast<std::size_t>(sealed_blocks(s, row));
      const auto packed = static_cast<std::size_t>(packed_blocks(s, row));
      if (packed >= sealed) continue;
      moved = true;
      std::vector<PlainBlock> fresh(packed);
      for (PlainBlock& b : fresh) {
        b.first.resize(per_row());
        b.units.resize(per_row());
        if (L::paged) b.page = make_page();
      }
      for (std::size_t u = 0; u < per_row(); ++u) {
        std::int64_t last = 0;
        std::size_t n = 0;
        for (std::size_t b = 0; b < sealed; ++b) {
          for (const PlainToken& t : row[b].units[u]) {
            if (!t.live) continue;
            fresh[n++ / block_tokens].units[u].push_back(t);
            last = t.position;
          }
        }
        for (PlainBlock& b : fresh) {
          b.first[u] = b.units[u].empty() ? last : b.units[u][0].position;
          if (!moves_exactly && !b.units[u].empty()) decode(b.units[u], 0, b.units[u].size(), true);
          const auto& tokens = b.units[u];
          b.in_order = b.in_order && tokens.size() == block_tokens &&
                       tokens.back().position - tokens[0].position == block_tokens - 1;
        }
      }
      row.erase(row.begin(), row.begin() + static_cast<std::ptrdiff_t>(sealed));
      row.insert(row.begin(), fresh.begin(), fresh.end());
    }
    if (moved) s.exact_begin = s.sealed_end;
  }

  // --- what a cache should report

  [[nodiscard]] std::int64_t pages_free() const {
    if (L::paged) return shape_.num_pages - *held_;
    std::int64_t used = 0;
    for (const PlainSequence& s : sequences_) {
      for (const auto& row : s.rows) used += static_cast<std::int64_t>(row.size());
    }
    return shape_.num_pages - used;
  }
  [[nodiscard]] std::int64_t stored_tokens() const {
    std::int64_t n = 0;
    for (const PlainSequence& s : sequences_) n += s.length * shape_.slots * shape_.unit.units;
    return n;
  }
  [[nodiscard]] std::int64_t live_tokens() const {
    std::int64_t n = 0;
    for (const PlainSequence& s : sequences_) {
      for (const auto& row : s.rows) {
        for (const PlainBlock& b : row) n += live_tokens(b);
      }
    }
    return n;
  }

  /// Whether the query at `p` reads a token at `position` from its exact copy in the tail.
  [[nodiscard]] bool in_tail(const PlainSequence& s, std::int64_t p, std::int64_t position) const {
    if (shape_.open) return false;
    return position >= s.exact_begin && position >= s.origin + rule(p - s.origin);
  }

  /// Whether the query at `p` sees a token decoded that the tail's rule wants exact.
  [[nodiscard]] bool misses_exact_copies(int sequence, int slot, std::int64_t p) const {
    const PlainSequence& s = this->sequence(sequence);
    if (shape_.open) return false;
    for (int r = 0; r < shape_.rows; ++r) {
      for (const PlainBlock& b : row(sequence, slot, r)) {
        for (const auto& unit : b.units) {
          for (const PlainToken& t : unit) {
            if (t.live && t.position <= p && t.position >= s.origin + rule(p - s.origin) &&
                t.position >= s.decoded_before && t.position < s.exact_begin) {
              return true;
            }
          }
        }
      }
    }
    return false;
  }

 private:
  static constexpr bool moves_exactly = KeyCodec::granularity == Granularity::per_token &&
                                        ValueCodec::granularity == Granularity::per_token;

  template <class V>
  static auto& at(V& v, int i) {
    return v.at(static_cast<std::size_t>(i));
  }
  [[nodiscard]] std::size_t per_row() const {
    return static_cast<std::size_t>(shape_.units_per_row);
  }
  [[nodiscard]] std::size_t units() const { return static_cast<std::size_t>(shape_.unit.units); }
  [[nodiscard]] std::size_t key_floats() const {
    return static_cast<std::size_t>(shape_.unit.key_streams * shape_.key_width);
  }
  [[nodiscard]] std::size_t value_floats() const {
    return static_cast<std::size_t>(shape_.unit.value_streams * shape_.value_width);
  }

  PlainPage make_page() {
    ++*held_;
    return PlainPage(new int, [held = held_](int* p) {
      --*held;
      delete p;
    });
  }

  /// Tokens before granule * floor(max(0, p + 1 - min) / granule) are read decoded.
  [[nodiscard]] std::int64_t rule(std::int64_t p) const {
    const std::int64_t old = std::max<std::int64_t>(0, p + 1 - shape_.tail.min_tokens);
    return old - old % shape_.tail.granule_tokens;
  }
  [[nodiscard]] std::int64_t sealed_by_rule(const PlainSequence& s, std::int64_t length) const {
    const std::int64_t own = length - s.origin;
    if (own <= 0) return s.origin;
    const std::int64_t whole = shape_.open ? own - own % block_tokens : rule(own - 1);
    return std::max(s.origin + whole, s.sealed_end);
  }
  [[nodiscard]] static std::int64_t grid_blocks(const PlainSequence& s, std::int64_t end) {
    return (std::max<std::int64_t>(0, end - s.origin) + block_tokens - 1) / block_tokens;
  }
  [[nodiscard]] bool is_open_block(int i, const PlainBlock& b) const {
    return shape_.open && b.first[0] >= sequence(i).sealed_end;
  }
  [[nodiscard]] static std::int64_t live_tokens(const PlainBlock& b) {
    std::int64_t n = 0;
    for (const auto& tokens : b.units) {
      for (const PlainToken& t : tokens) n += t.live ? 1 : 0;
    }
    return n;
  }
  [[nodiscard]] static bool is_dead(const PlainSequence& s, const PlainBlock& b) {
    return b.first[0] < s.sealed_end && live_tokens(b) == 0;
  }
  [[nodiscard]] static std::int64_t sealed_blocks(const PlainSequence& s,
                                                  const std::vector<PlainBlock>& row) {
    return std::count_if(row.begin(), row.end(),
                         [&](const PlainBlock& b) { return b.first[0] < s.sealed_end; });
  }
  [[nodiscard]] std::int64_t packed_blocks(const PlainSequence& s,
                                           const std::vector<PlainBlock>& row) const {
    const auto sealed = static_cast<std::size_t>(sealed_blocks(s, row));
    std::int64_t most = 0;
    for (std::size_t u = 0; u < per_row(); ++u) {
      std::int64_t live = 0;
      for (std::size_t b = 0; b < sealed; ++b) {
        for (const PlainToken& t : row[b].units[u]) live += t.live ? 1 : 0;
      }
      most = std::max(most, (live + block_tokens - 1) / block_tokens);
    }
    return most;
  }

  // --- joining of short blocks, where survivors do not scatter

  /// A block that joining makes: the live tokens of 64 positions from `first`.
  struct Joined {
    std::int64_t first = 0;
    std::vector<std::size_t> sources;  ///< old blocks with tokens in it
    bool whole = false;                ///< one old block with all its live tokens
  };
  [[nodiscard]] std::vector<Joined> joined(const PlainSequence& s,
                                           const std::vector<PlainBlock>& row) const {
    std::map<std::int64_t, std::size_t> blocks;  // by position
    std::map<std::size_t, std::size_t> size;     // positions of a block
    for (std::size_t b = 0; b < static_cast<std::size_t>(sealed_blocks(s, row)); ++b) {
      for (const auto& tokens : row[b].units) {
        for (const PlainToken& t : tokens) {
          if (t.live && blocks.emplace(t.position, b).second) ++size[b];
        }
      }
    }
    std::vector<Joined> result;
    for (auto at = blocks.begin(); at != blocks.end();) {
      Joined own;
      own.first = at->first;
      std::size_t positions = 0;
      for (; at != blocks.end() && at->first < own.first + block_tokens; ++at, ++positions) {
        if (own.sources.empty() || own.sources.back() != at->second) {
          own.sources.push_back(at->second);
        }
      }
      own.whole = own.sources.size() == 1 && size[own.sources[0]] == positions;
      result.push_back(own);
    }
    return result;
  }
  [[nodiscard]] std::int64_t live_blocks(const PlainSequence& s,
                                         const std::vector<PlainBlock>& row) const {
    return sealed_blocks(s, row) -
           std::count_if(row.begin(), row.end(), [&](auto& b) { return is_dead(s, b); });
  }

  void take_page(CompactPlan* plan) const {
    --plan->pages_returned;
    if (L::paged) plan->pages_needed = std::max(plan->pages_needed, -plan->pages_returned);
  }
  void give_page(const PlainBlock& block, CompactPlan* plan) const {
    if (!L::paged || block.page.use_count() == 1) ++plan->pages_returned;
  }
  void plan_join(const PlainSequence& s, const std::vector<PlainBlock>& row,
                 CompactPlan* plan) const {
    const auto blocks = joined(s, row);
    const bool rewrites = static_cast<std::int64_t>(blocks.size()) < live_blocks(s, row);
    const auto sealed = static_cast<std::size_t>(sealed_blocks(s, row));
    std::vector<bool> stays(sealed, false);
    std::size_t next = 0;  // old blocks before it are given up or stay
    const auto give_up_to = [&](std::size_t end) {
      for (; next < end; ++next) {
        const bool goes = rewrites ? !stays[next] : is_dead(s, row[next]);
        if (goes) give_page(row[next], plan);
      }
    };
    for (const Joined& block : blocks) {
      give_up_to(block.sources[0]);
      if (block.whole) stays[block.sources[0]] = true;
      if (!rewrites || block.whole) continue;
      take_page(plan);
      for (const std::size_t b : block.sources) {
        for (const auto& tokens : row[b].units) {
          for (const PlainToken& t : tokens) {
            const std::int64_t place = t.position - block.first;
            plan->tokens_moved += t.live && place >= 0 && place < block_tokens ? 1 : 0;
          }
        }
      }
    }
    give_up_to(sealed);
  }

  /// Returns whether anything was rewritten.
  bool join(const PlainSequence& s, std::vector<PlainBlock>& row) {
    const auto blocks = joined(s, row);
    if (static_cast<std::int64_t>(blocks.size()) >= live_blocks(s, row)) {
      std::erase_if(row, [&](auto& b) { return is_dead(s, b); });
      return false;
    }
    std::vector<PlainBlock> fresh;
    for (const Joined& block : blocks) {
      if (block.whole) {
        fresh.push_back(row[block.sources[0]]);
        continue;
      }
      PlainBlock own;
      own.first.assign(per_row(), block.first);
      own.units.resize(per_row());
      if (L::paged) own.page = make_page();
      for (std::size_t u = 0; u < per_row(); ++u) {
        auto& tokens = own.units[u];
        std::vector<std::size_t> places;
        for (const std::size_t b : block.sources) {
          for (const PlainToken& t : row[b].units[u]) {
            const std::int64_t place = t.position - block.first;
            if (!t.live || place < 0 || place >= block_tokens) continue;
            tokens.push_back(t);
            places.push_back(static_cast<std::size_t>(place));
          }
        }
        if (!moves_exactly && !tokens.empty()) decode(tokens, 0, tokens.size(), true, places);
      }
      fresh.push_back(std::move(own));
    }
    row.erase(row.begin(), row.begin() + static_cast<std::ptrdiff_t>(sealed_blocks(s, row)));
    row.insert(row.begin(), fresh.begin(), fresh.end());
    return true;
  }

  // --- shortening

  /// An open policy fills the newest block of a row; one that another sequence has is copied first.
  [[nodiscard]] bool must_copy_newest(const PlainSequence& s,
                                      const std::vector<PlainBlock>& row) const {
    return L::paged && shape_.open && s.length > s.sealed_end && row.back().page.use_count() > 1;
  }
  /// Where an open policy goes on that was cut at `length`: in the block there, if all rows have it
  /// with its places in order.
  [[nodiscard]] std::int64_t reopened(const PlainSequence& s, std::int64_t length) const {
    if (!shape_.open || s.rows[0].empty()) return length;
    const std::int64_t first = s.rows[0].back().first[0];
    for (const auto& row : s.rows) {
      if (row.empty() || !row.back().in_order) return length;
      for (const std::int64_t own : row.back().first) {
        if (own != first) return length;
      }
    }
    return length < first + block_tokens ? first : length;
  }

  void shrink(int i, std::int64_t length) {
    PlainSequence& s = at(sequences_, i);
    bool exact = length >= (shape_.open ? s.sealed_end : s.exact_begin);
    std::int64_t sealed_end = length;
    if (exact) {
      PlainSequence grid;
      grid.origin = s.origin;
      grid.sealed_end = shape_.open ? s.sealed_end : s.exact_begin;
      sealed_end = sealed_by_rule(grid, length);
      const std::int64_t begin = sealed_end;
      for (std::int64_t f = begin; f < std::min(length, s.sealed_end); f += block_tokens) {
        for (const auto& row : s.rows) {  // what eviction released stays sealed
          const bool held = std::any_of(row.begin(), row.end(),
                                        [&](const PlainBlock& b) { return b.first[0] == f; });
          if (!held) sealed_end = f + block_tokens;
        }
      }
      exact = sealed_end <= length;
    }
    for (auto& row : s.rows) {
      std::erase_if(row, [&](const PlainBlock& b) {
        return std::all_of(b.first.begin(), b.first.end(), [&](auto f) { return f >= length; });
      });
      for (PlainBlock& b : row) {
        for (auto& tokens : b.units) {
          std::erase_if(tokens, [&](const PlainToken& t) { return t.position >= length; });
        }
        for (std::int64_t& first : b.first) first = std::min(first, length - 1);
        if (exact && !shape_.open && b.first[0] >= sealed_end) b.page = nullptr;
      }
    }
    if (exact) {
      const std::int64_t last = std::max<std::int64_t>(0, length - 1 - s.origin);
      const bool keeps_rule = shape_.open || sealed_end <= s.origin + rule(last);
      s.decoded_before = keeps_rule ? std::min(s.decoded_before, sealed_end) : sealed_end;
      s.sealed_end = sealed_end;
    } else {
      s.origin = s.sealed_end = s.exact_begin = reopened(s, length);
      s.decoded_before = 0;
    }
    s.length = length;
  }

  template <class F>
  void for_each_unit(int i, int slot, F&& f) {
    for (int u = 0; u < shape_.unit.units; ++u) {
      std::vector<PlainToken*> tokens;
      for (PlainBlock& b :
           at(at(sequences_, i).rows, slot * shape_.rows + u / shape_.units_per_row)) {
        for (PlainToken& t : at(b.units, u % shape_.units_per_row)) {
          if (t.live) tokens.push_back(&t);
        }
      }
      f(u, tokens);
    }
  }

  [[nodiscard]] float admitted(const float* gate_logits, int token, int unit) const {
    if constexpr (Policy::signal == Signal::gate_logit) {
      const float* own = gate_logits + token * shape_.kv_heads + unit * shape_.unit.heads_per_unit;
      return *std::max_element(own, own + shape_.unit.heads_per_unit);
    } else {
      return 0;
    }
  }

  /// Values in the codec's basis of all streams of one side.
  template <class CodecPart>
  [[nodiscard]] std::vector<float> turned(Side side, const float* in) const {
    const int width = side == Side::key ? shape_.key_width : shape_.value_width;
    const int streams = side == Side::key ? shape_.unit.key_streams : shape_.unit.value_streams;
    std::vector<float> x(in, in + streams * width);
    for (float& v : x) v = std::clamp(v, -65504.0f, 65504.0f);
    for (int s = 0; s < streams; ++s)
      to_basis<CodecPart>(CodecContext{side, width}, &x[static_cast<std::size_t>(s * width)]);
    if (!shape_.open && !has_f16_tail<Policy>) {
      for (float& v : x) v = std::clamp(v, -tail_max, tail_max);
    }
    return x;
  }

  /// The same, rounded to 16 bits.
  [[nodiscard]] static std::vector<float> rounded(std::vector<float> x) {
    for (float& v : x) v = to_float(to_f16_saturating(v));
    return x;
  }

  /// The same, as the codec of the tail has them: a function of the token, by the codec's contract.
  [[nodiscard]] std::vector<float> in_tail_form(Side side, std::vector<float> x) const {
    const int width = side == Side::key ? shape_.key_width : shape_.value_width;
    const CodecContext context{side, width};
    std::vector<std::uint64_t> storage(TailForm::record(side, width).bytes / 8);
    auto* block = reinterpret_cast<std::byte*>(storage.data());
    for (auto v = x.begin(); v != x.end(); v += width) {
      TailForm::encode_token(context, &*v, 0, block);
      for (int c = 0; c < width; ++c) v[c] = TailForm::decode(context, block, 0, c);
    }
    return x;
  }

  /// Fills in what tokens [begin, end) of a block decode to: by the codec's contract a function of
  /// the token (per token) or of the 64 tokens (per channel). `again`: from what they decode to
  /// now. `places` in the block: one after another, if empty.
  void decode(std::vector<PlainToken>& tokens, std::size_t begin, std::size_t end, bool again,
              const std::vector<std::size_t>& places = {}) {
    std::vector<std::shared_ptr<PlainVectors>> fresh;
    for (std::size_t t = begin; t < end; ++t) {
      fresh.push_back(std::make_shared<PlainVectors>(*tokens[t].data));
    }
    decode_side<KeyCodec>(Side::key, fresh, again, places, &PlainVectors::tail_keys,
                          &PlainVectors::keys);
    decode_side<ValueCodec>(Side::value, fresh, again, places, &PlainVectors::tail_values,
                            &PlainVectors::values);
    for (std::size_t t = begin; t < end; ++t) tokens[t].data = fresh[t - begin];
  }

  using Member = std::vector<float> PlainVectors::*;
  template <class CodecPart>
  void decode_side(Side side, std::vector<std::shared_ptr<PlainVectors>>& tokens, bool again,
                   const std::vector<std::size_t>& places, Member tail_member,
                   Member decoded_member) const {
    const auto place = [&](std::size_t t) { return places.empty() ? t : places[t]; };
    const int width = side == Side::key ? shape_.key_width : shape_.value_width;
    const int streams = side == Side::key ? shape_.unit.key_streams : shape_.unit.value_streams;
    const CodecContext context{side, width};
    const Record record = CodecPart::record(side, width);
    std::vector<std::uint64_t> storage(record.bytes / 8);
    auto* block = reinterpret_cast<std::byte*>(storage.data());
    for (auto& t : tokens) {
      if (!again) ((*t).*decoded_member).resize(static_cast<std::size_t>(streams * width));
    }
    for (int s = 0; s < streams; ++s) {
      const auto offset = static_cast<std::size_t>(s * width);
      const auto source = [&](std::size_t t) {
        return ((*tokens[t]).*(again ? decoded_member : tail_member)).data() + offset;
      };
      std::fill(storage.begin(), storage.end(), 0);
      if constexpr (CanEncodeToken<CodecPart>) {
        for (std::size_t t = 0; t < tokens.size(); ++t) {
          CodecPart::encode_token(context, source(t), static_cast<int>(place(t)), block);
        }
      } else {
        std::vector<float> x(static_cast<std::size_t>(block_tokens * width));
        std::size_t t = 0;  // unused places repeat the token before, or the first one
        for (std::size_t p = 0; p < block_tokens; ++p) {
          while (t + 1 < tokens.size() && place(t + 1) <= p) ++t;
          std::copy_n(source(t), width,
                      x.begin() + static_cast<std::ptrdiff_t>(p * static_cast<std::size_t>(width)));
        }
        CodecPart::encode_block(context, x.data(), block);
      }
      for (std::size_t t = 0; t < tokens.size(); ++t) {
        for (int c = 0; c < width; ++c) {
          ((*tokens[t]).*decoded_member)[offset + static_cast<std::size_t>(c)] =
              CodecPart::decode(context, block, static_cast<int>(place(t)), c);
        }
      }
    }
  }

  ClassShape shape_;
  typename Evictor::Params eviction_;
  std::vector<PlainSequence> sequences_;
  std::vector<StepPart> parts_;
  std::shared_ptr<std::int64_t> held_;
};

}  // namespace terse::tests
