/// Random sequences of cache operations beside the plain model, with every invariant checked after
/// each of them.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "support/cache_fixture.hpp"
#include "support/plain_attention.hpp"
#include "support/random.hpp"

namespace terse::tests {

/// Sanitizers slow the tests tenfold: there a fifth of the operations runs.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
inline constexpr int operation_divisor = 5;
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
inline constexpr int operation_divisor = 5;
#else
inline constexpr int operation_divisor = 1;
#endif
#else
inline constexpr int operation_divisor = 1;
#endif

struct RandomRun {
  int query_heads = 4;
  int kv_heads = 2;
  int head_dim = 16;
  int max_tokens = 256;
  int max_step_tokens = 70;
  double pool_share = 0.5;  ///< pages, as a share of what all sequences could fill
  int operations = 10000;
  std::uint64_t seed = 1;
  int attend_every = 12;
  bool allow_reencoding = true;
  bool long_steps = false;        ///< mostly steps of up to max_step_tokens
  bool deep_truncations = false;  ///< so that exact copies are gone, in sequences that live long
};

template <Layout L, class P>
class RandomOperations {
  using Policy = PolicyOf<P>;
  using Cache = KVCache<L, P>;
  static constexpr int num_sequences = 3;
  static constexpr int num_slots = 2;

 public:
  RandomOperations(const RandomRun& run, PolicyConfig<Policy> policy)
      : run_(run), random_(run.seed) {
    config_ = {.num_layers = 3,
               .num_query_heads = run.query_heads,
               .num_kv_heads = run.kv_heads,
               .head_dim = run.head_dim,
               .max_sequences = num_sequences,
               .max_tokens = run.max_tokens,
               .max_step_tokens = run.max_step_tokens,
               .rope = {.pairing = RopePairing::interleaved, .rotary_dim = run.head_dim},
               .layers = places_};
    if constexpr (Policy::projects) {
      const int rank = run.head_dim;  // of a joint latent
      for (int s = 0; s < num_slots; ++s) {
        for (int side = 0; side < 2; ++side) {
          up_.push_back(
              random_.normals(static_cast<std::size_t>(run.kv_heads * run.head_dim * rank), 0.25f));
        }
      }
      for (int s = 0; s < num_slots; ++s) {
        factors_.push_back({rank, rank, up_[static_cast<std::size_t>(2 * s)].data(),
                            up_[static_cast<std::size_t>(2 * s + 1)].data()});
      }
      policy.factors = factors_;
    }
    const MemoryPlan unlimited = *Cache::plan(config_, {policy});
    if constexpr (L::paged) {
      policy.num_pages = static_cast<std::int64_t>(
          static_cast<double>(unlimited.classes[0].shape.num_pages) * run.pool_share);
    }
    policies_ = {policy};
    buffers_.emplace(*Cache::plan(config_, policies_));
    cache_.reset(new Cache(std::move(*Cache::create(config_, buffers_->view(), policies_))));
    model_.emplace(cache_->memory_plan().classes[0].shape, policy.eviction);
    for (SequenceId& id : ids_) id = {};
  }

  /// Returns what went wrong first, or nothing.
  std::string go() {
    const int operations = run_.operations / operation_divisor;
    for (int i = 0; i < operations && trouble_.empty(); ++i) {
      one_operation();
      check_invariants();
      if (!trouble_.empty()) {
        trouble_ = "operation " + std::to_string(i) + " (" + name_ + "): " + trouble_;
      }
    }
    if (!trouble_.empty()) return trouble_;
    for (int i = 0; i < num_sequences; ++i) {
      if (alive(i)) release(i);
    }
    check_invariants();
    const MemoryUsage usage = cache_->memory_usage();
    expect(usage.pages_held == 0 && usage.live_tokens == 0, "the pool is not full at the end");
    expect(attends_ > 0 && refusals_ > 0, "the run did not reach every kind of operation");
    return trouble_;
  }

  /// Tokens that compact has moved.
  [[nodiscard]] std::int64_t moved_tokens() const { return moved_; }
  [[nodiscard]] double worst_vectorised() const { return worst_[0]; }
  [[nodiscard]] double worst_oracle() const { return worst_[1]; }

 private:
  [[nodiscard]] bool alive(int i) const { return ids_[i].index >= 0; }
  [[nodiscard]] int any_alive() {
    const int start = random_.below(num_sequences);
    for (int k = 0; k < num_sequences; ++k) {
      if (alive((start + k) % num_sequences)) return (start + k) % num_sequences;
    }
    return -1;
  }

  void expect(bool holds, const std::string& what) {
    if (!holds && trouble_.empty()) trouble_ = what;
  }
  void expect_ok(const Status& status) { expect(status.ok(), status.text); }

  /// A call that the model says must fail: right code, and not a byte changes.
  template <class Call>
  void expect_refusal(StatusCode code, Call&& call) {
    const OwnedBuffers before = buffers_->copy();
    const Status status = call();
    expect(status.code == code, std::string("expected a refusal, got: ") + status.text);
    expect(before == *buffers_, std::string("a refused call changed a buffer: ") + status.text);
    ++refusals_;
  }

  void one_operation() {
    const int i = any_alive();
    const int dice = random_.below(1000);
    if (i < 0 || dice < 60) {
      create();
    } else if (dice < 560) {
      step();
    } else if (dice < 630) {
      fork(i);
    } else if (dice < 740) {
      truncate(i);
    } else if (dice < 880) {
      evict(i);
    } else if (dice < 945) {
      compact(i);
    } else if (dice < (run_.deep_truncations ? 955 : 995)) {
      release(i);
    } else if (dice >= 995) {
      attach();
    }
  }

  void create() {
    name_ = "create_sequence";
    int free = -1;
    for (int i = num_sequences - 1; i >= 0; --i) {
      if (!alive(i)) free = i;
    }
    if (free < 0) {
      return expect_refusal(StatusCode::too_many_sequences,
                            [&] { return cache_->create_sequence().status(); });
    }
    const auto id = cache_->create_sequence();
    if (!id.ok()) return expect_ok(id.status());
    expect(id->index == free, "create_sequence took another place");
    ids_[free] = *id;
    model_->create(free);
  }

  void release(int i) {
    name_ = "release";
    expect_ok(cache_->release(ids_[i]));
    expect(cache_->length(ids_[i]).status().code == StatusCode::stale_sequence,
           "a released handle lives");
    ids_[i] = {};
    model_->release(i);
  }

  void fork(int i) {
    name_ = "fork";
    if (const StatusCode code = model_->can_fork(i); code != StatusCode::ok) {
      return expect_refusal(code, [&] { return cache_->fork(ids_[i]).status(); });
    }
    const auto id = cache_->fork(ids_[i]);
    if (!id.ok()) return expect_ok(id.status());
    ids_[id->index] = *id;
    model_->fork(i, id->index);
  }

  void truncate(int i) {
    name_ = "truncate";
    const auto length = static_cast<int>(model_->sequence(i).length);
    const bool is_deep = random_.below(3) == 0;
    int dropped = is_deep && run_.deep_truncations ? 110 + random_.below(60)
                  : is_deep                        ? random_.below(length + 1)
                                                   : random_.below(6);
    dropped = std::min(length, dropped);
    expect_ok(cache_->truncate(ids_[i], length - dropped));
    model_->truncate(i, length - dropped);
  }

  void evict(int i) {
    name_ = "evict";
    const int incoming = random_.below(3) == 0 ? random_.below(20) : 0;
    const std::int64_t free = cache_->memory_usage().pages_free;
    const auto freed = cache_->evict(ids_[i], incoming);
    const std::int64_t expected = model_->evict(i, incoming);
    if (!freed.ok()) return expect_ok(freed.status());
    expect(*freed == expected, "evict says that " + std::to_string(*freed) +
                                   " pages became free, not " + std::to_string(expected));
    expect(cache_->memory_usage().pages_free == free + expected, "the pool's free count is wrong");
  }

  [[nodiscard]] static std::string text(const CompactPlan& plan) {
    return std::to_string(plan.pages_needed) + " pages needed, " +
           std::to_string(plan.pages_returned) + " returned, " + std::to_string(plan.tokens_moved) +
           " tokens moved, " + std::to_string(plan.tokens_reencoded) + " of them encoded again";
  }

  void compact(int i) {
    name_ = "compact";
    const CompactPlan expected = model_->plan_compact(i);
    const auto planned = cache_->plan_compact(ids_[i]);
    expect(planned.ok() && planned->pages_needed == expected.pages_needed &&
               planned->pages_returned == expected.pages_returned &&
               planned->tokens_moved == expected.tokens_moved &&
               planned->tokens_reencoded == expected.tokens_reencoded,
           "plan_compact: " + text(*planned) + ", should be " + text(expected));
    const bool allow = run_.allow_reencoding && random_.below(2) == 0;
    if (const StatusCode code = model_->can_compact(i, allow); code != StatusCode::ok) {
      return expect_refusal(code, [&] { return cache_->compact(ids_[i], allow).status(); });
    }
    const std::int64_t free = cache_->memory_usage().pages_free;
    expect_ok(cache_->compact(ids_[i], allow).status());
    model_->compact(i);
    moved_ += expected.tokens_moved;
    expect(cache_->memory_usage().pages_free == free + expected.pages_returned,
           "compact returned another number of pages than planned");
    check_attention(i, 1);
  }

  /// The cache goes on from a byte copy; the old buffers are gone.
  void attach() {
    name_ = "attach";
    OwnedBuffers copy = buffers_->copy();
    cache_.reset();
    buffers_.emplace(std::move(copy));
    auto attached = Cache::attach(config_, buffers_->view(), policies_);
    if (!attached.ok()) return expect_ok(attached.status());
    cache_.reset(new Cache(std::move(*attached)));
  }

  void step() {
    name_ = "step";
    std::vector<StepPart> parts;
    for (int i = 0; i < num_sequences; ++i) {
      if (!alive(i) || random_.below(3) == 0) continue;
      const int kind = run_.long_steps ? 3 + random_.below(10) : random_.below(8);
      const int tokens = kind < 4   ? 1
                         : kind < 7 ? 1 + random_.below(9)
                                    : 1 + random_.below(run_.max_step_tokens);
      parts.push_back({ids_[i], tokens});
    }
    if (parts.empty()) parts.push_back({ids_[any_alive()], 1});
    if (parts.size() > 1 && random_.below(2) == 0) std::swap(parts.front(), parts.back());
    if (const StatusCode code = model_->can_begin(parts); code != StatusCode::ok) {
      return expect_refusal(code, [&] { return cache_->begin_step(parts); });
    }
    expect_ok(cache_->begin_step(parts));
    model_->begin(parts);
    const int first_layer = random_.below(3);
    for (int k = 0; k < 3 && trouble_.empty(); ++k) append((first_layer + k) % 3, parts);
    std::vector<int> accepted;
    const int kind = random_.below(10);
    for (const StepPart& part : parts) {
      accepted.push_back(kind == 0 ? 0 : kind <= 3 ? random_.below(part.tokens + 1) : part.tokens);
    }
    expect_ok(kind == 0
                  ? cache_->abandon_step()
                  : cache_->commit_step(kind <= 3 ? Span<const int>(accepted) : Span<const int>{}));
    model_->end_step(accepted);
    if constexpr (Policy::signal == Signal::column_sum) {
      for (int layer = 0; layer < num_slots; ++layer) observe(layer, parts);
    }
    appended_[0] = appended_[1] = false;
  }

  void append(int layer, const std::vector<StepPart>& parts) {
    const ClassShape& shape = model_->shape();
    const int slot = places_[layer].slot;
    const int key_rows = shape.unit.units * shape.unit.key_streams;
    const int value_rows = shape.unit.units * shape.unit.value_streams;
    std::size_t rows = 0;
    for (const StepPart& part : parts) rows += static_cast<std::size_t>(part.tokens);
    const std::size_t key_floats = static_cast<std::size_t>(key_rows * shape.key_width);
    const std::size_t value_floats = static_cast<std::size_t>(value_rows * shape.value_width);
    const auto heads = static_cast<std::size_t>(shape.kv_heads);
    const auto keys = noise(rows * key_floats);
    auto values = noise(rows * value_floats);
    const auto gates = noise(rows * heads);
    if (random_.below(100) == 0) values[0] = 1e9f;  // saturates
    const AppendInputs in{
        HeadRows::dense(keys.data(), Scalar::f32, key_rows, shape.key_width),
        HeadRows::dense(values.data(), Scalar::f32, value_rows, shape.value_width),
        HeadRows::dense(gates.data(), Scalar::f32, shape.kv_heads, 1)};
    const Status status = cache_->append(layer, in);
    if (appended_[slot]) {
      return expect(status.code == StatusCode::already_appended, "a slot took tokens twice");
    }
    expect_ok(status);
    appended_[slot] = true;
    if (shape.encodes_ahead && random_.below(2) == 0) expect_ok(cache_->encode_ahead(layer));
    std::size_t row = 0;
    for (std::size_t i = 0; i < parts.size(); ++i) {
      model_->append(slot, i,
                     {&keys[row * key_floats], &values[row * value_floats], &gates[row * heads]});
      row += static_cast<std::size_t>(parts[i].tokens);
    }
    if (random_.below(run_.attend_every) == 0) {
      for (const StepPart& part : parts) attend(part, slot, layer);
    }
  }

  /// Feeds both evictors numbers that sums of floats represent exactly.
  void observe(int layer, const std::vector<StepPart>& parts) {
    const auto r = cache_->layer(layer);
    const std::uint64_t salt = random_.bits();
    const auto score = [&](std::int64_t position, int unit) {
      Random own(salt + static_cast<std::uint64_t>(position * 64 + unit));
      return static_cast<float>(own.below(1024)) / 1024.0f;
    };
    std::vector<float> sums(parts.size() * cache_->column_sum_floats(layer));
    std::size_t at = 0;
    for (const StepPart& part : parts) {
      for (int u = 0; u < r.shape.unit.units; ++u) {
        for (int e = 0; e < r.shape.entries; ++e) {
          for (int t = 0; t < block_tokens; ++t, ++at) {
            if (e < r.entry_count(part.sequence.index, r.row_of_unit(u))) {
              sums[at] = score(r.position(part.sequence.index, u, e, t), u);
            }
          }
        }
      }
    }
    expect_ok(cache_->observe(layer, parts, sums));
    for (const StepPart& part : parts)
      model_->observe(part.sequence.index, places_[layer].slot, score);
  }

  void check_attention(int i, int rows) {
    if (model_->sequence(i).length < rows) return;
    for (int layer = 0; layer < num_slots; ++layer)
      attend({ids_[i], rows}, places_[layer].slot, layer);
  }

  /// Both paths against the plain model, on the newest rows of a sequence.
  void attend(StepPart part, int slot, int layer) {
    part.tokens = std::min(part.tokens, 1 + random_.below(12));
    const auto r = cache_->layer(layer);
    const auto queries = random_.normals(
        static_cast<std::size_t>(part.tokens * r.shape.query_heads * r.shape.head_dim));
    AttendParams params;
    if (random_.below(4) == 0) params.sliding_window_tokens = 1 + random_.below(100);
    if (Policy::reindex == Reindex::cache_index) params.sliding_window_tokens = 0;
    const PlainAttended expected = plain_attend(
        *model_, part.sequence.index, slot, part.tokens, queries.data(), config_.rope,
        Policy::projects ? factors_[static_cast<std::size_t>(slot)] : ProjectionFactors{},
        params.sliding_window_tokens);
    const PlainSequence& own = model_->sequence(part.sequence.index);
    const std::int64_t oldest = own.length + own.pending - part.tokens;
    const bool misses = model_->misses_exact_copies(part.sequence.index, slot, oldest);
    expect(!misses || part.tokens > own.pending, "a step's own rows miss exact copies");
    if (misses) params.sliding_window_tokens = 0;
    for (const Path path : {Path::vectorised, Path::oracle}) {
      const Attended got = run_attend(r, {&part, 1}, queries, path, params);
      if (misses) {
        expect(got.status.code == StatusCode::would_be_lossy, "rows are read decoded");
        continue;
      }
      expect_ok(got.status);
      const double error = distance(got, expected);
      double& worst = worst_[path == Path::oracle];
      worst = std::max(worst, error);
      expect(error < 1e-5, (path == Path::oracle ? "oracle differs from the plain model by "
                                                 : "attend differs from the plain model by ") +
                               std::to_string(error));
    }
    ++attends_;
  }

  [[nodiscard]] static double distance(const Attended& got, const PlainAttended& expected) {
    double difference = 0, norm = 0, lse = 0;
    for (std::size_t i = 0; i < expected.output.size(); ++i) {
      difference += std::pow(got.output[i] - expected.output[i], 2);
      norm += std::pow(expected.output[i], 2);
    }
    for (std::size_t i = 0; i < expected.lse_ln.size(); ++i) {
      if (std::isinf(expected.lse_ln[i]) || std::isinf(got.lse_ln[i])) {
        if (!(got.lse_ln[i] == expected.lse_ln[i])) return INFINITY;
      } else {
        const double own = std::abs(got.lse_ln[i] - expected.lse_ln[i]) /
                           std::max(1.0, std::abs(expected.lse_ln[i]));
        if (!(own <= lse)) lse = own;
      }
    }
    const double output = norm == 0 ? std::sqrt(difference) : std::sqrt(difference / norm);
    return std::isnan(output) || std::isnan(lse) ? INFINITY : std::max(output, lse);
  }

  [[nodiscard]] std::vector<float> noise(std::size_t count) {
    std::vector<float> x(count);
    for (float& v : x) v = static_cast<float>(random_.uniform() * 4.0 - 2.0);
    return x;
  }

  void check_invariants() {
    const MemoryUsage usage = cache_->memory_usage();
    const ClassShape& shape = model_->shape();
    expect(usage.pages_free == model_->pages_free(),
           "free pages: " + std::to_string(usage.pages_free) + ", should be " +
               std::to_string(model_->pages_free()));
    expect(usage.pages_held + usage.pages_free == shape.num_pages, "pages are lost");
    expect(usage.page_bytes_held == static_cast<std::size_t>(usage.pages_held) * shape.page_bytes,
           "page_bytes_held is wrong");
    expect(usage.tail_bytes == buffers_->tails.span().size() &&
               usage.state_bytes == buffers_->state.span().size(),
           "tail or state bytes are wrong");
    expect(usage.stored_tokens == model_->stored_tokens(), "stored_tokens is wrong");
    expect(usage.live_tokens == model_->live_tokens(), "live_tokens is wrong");
    check_tables();
  }

  void check_tables() {
    std::map<std::int32_t, long> owners;
    for (int slot = 0; slot < num_slots; ++slot) {
      const auto r = cache_->layer(slot);  // layers 0 and 1 have slots 0 and 1
      for (int i = 0; i < num_sequences; ++i) {
        if (!alive(i)) continue;
        for (int row = 0; row < r.shape.rows; ++row) {
          const auto& blocks = model_->row(i, slot, row);
          if (r.entry_count(i, row) != static_cast<int>(blocks.size())) {
            return expect(false, "another number of entries than blocks");
          }
          for (int e = 0; e < r.entry_count(i, row); ++e) {
            const PlainBlock& b = blocks[static_cast<std::size_t>(e)];
            if (L::paged) {
              const std::int32_t page = r.page(i, row, e);
              expect((page == no_page) == (b.page == nullptr), "a page too many or too few");
              if (page != no_page) ++owners[page];
            }
            for (int k = 0; k < r.shape.units_per_row; ++k) {
              check_block(r, i, row * r.shape.units_per_row + k, e,
                          b.units[static_cast<std::size_t>(k)]);
            }
          }
        }
      }
    }
    if constexpr (L::paged) check_references(owners);
  }

  template <class Ref>
  void check_block(const Ref& r, int i, int unit, int entry,
                   const std::vector<PlainToken>& tokens) {
    std::size_t next = 0;
    for (std::uint64_t bits = r.live_mask(i, unit, entry); bits != 0; bits &= bits - 1) {
      while (next < tokens.size() && !tokens[next].live) ++next;
      if (next == tokens.size()) return expect(false, "a live token too many");
      expect(r.position(i, unit, entry, __builtin_ctzll(bits)) == tokens[next++].position,
             "a live token has another position");
    }
    while (next < tokens.size()) expect(!tokens[next++].live, "a live token is missing");
  }

  /// Counts of the pool, read from the state buffer, against the owners in the tables.
  void check_references(const std::map<std::int32_t, long>& owners) {
    terse::detail::Carver state(buffers_->state.span().data());
    (void)state.take<detail::StateRecord>(1);
    (void)state.take<SequenceRecord>(num_sequences);
    terse::detail::ClassStore<L, Policy> store;
    store.shape = model_->shape();
    store.carve_state(state);
    for (std::int32_t page = 0; page < store.shape.num_pages; ++page) {
      const auto own = owners.find(page);
      expect(store.pool.references(page) == (own == owners.end() ? 0 : own->second),
             "a reference count is wrong");
    }
  }

  static constexpr LayerPlace places_[3] = {{0, 0}, {1, 0}, {0, 0}};
  RandomRun run_;
  Random random_;
  CacheConfig config_;
  typename Cache::Configs policies_;
  std::vector<std::vector<float>> up_;
  std::vector<ProjectionFactors> factors_;
  std::optional<OwnedBuffers> buffers_;
  std::unique_ptr<Cache> cache_;
  std::optional<PlainModel<L, Policy>> model_;
  SequenceId ids_[num_sequences];
  bool appended_[num_slots] = {false, false};
  double worst_[2] = {0, 0};
  std::int64_t moved_ = 0;
  int attends_ = 0, refusals_ = 0;
  std::string name_, trouble_;
};

}  // namespace terse::tests
