/// A cache on the host and one on the device, driven by the same calls. After each of them what
/// they hold must be the same, bit for bit.
#pragma once

#include <algorithm>
#include <cstring>
#include <functional>
#include <string>
#include <tuple>
#include <vector>

#include "terse/cuda/kv_cache.cuh"

#include "cuda/device_memory.cuh"

namespace terse::tests {

/// Two layers of two KV heads.
inline CacheConfig two_layers(int head_dim, int max_step_tokens = 70) {
  return {.num_layers = 2,
          .num_query_heads = 4,
          .num_kv_heads = 2,
          .head_dim = head_dim,
          .max_sequences = 3,
          .max_tokens = 512,
          .max_step_tokens = max_step_tokens};
}

enum class Numbers {
  normal,
  odd,  ///< also zeros of both signs, constants, tiny and huge ones
};

/// Rows of a tensor `[row, head, channel]` on both sides, dense or not.
struct TwinRows {
  std::vector<std::byte> host;
  DeviceBytes device;
  Scalar scalar;
  std::int64_t head_stride, row_stride;

  TwinRows(Random& random, int rows, int heads, int channels, Scalar type, float spread,
           Numbers numbers, bool dense)
      : scalar(type),
        head_stride(channels + (dense ? 0 : random.below(2) * 3)),
        row_stride(heads * head_stride + (dense ? 0 : random.below(2) * 5)) {
    const auto size = static_cast<std::size_t>(rows * row_stride);
    host.resize(size * static_cast<std::size_t>(scalar_bytes(type)));
    for (int row = 0; row < rows; ++row) {
      for (int h = 0; h < heads; ++h) {
        const int kind = numbers == Numbers::odd ? random.below(12) : 11;
        for (int c = 0; c < channels; ++c) {
          float x = spread * random.normal();
          if (kind == 0) x = random.below(2) == 0 ? 0.0f : -0.0f;
          if (kind == 1) x = 0.75f;
          if (kind == 2) x *= 1e-7f;
          if (kind == 3 && random.below(20) == 0) x *= 1e6f;
          put(row, h, c, x);
        }
      }
    }
    send();
  }
  void put(int row, int head, int channel, float x) {
    MutableHeadRows{host.data(), scalar, row_stride, head_stride}.put(row, head, channel, x);
  }
  void send() { device = DeviceBytes::copy_of(host.data(), host.size()); }
  [[nodiscard]] HeadRows on_host() const { return {host.data(), scalar, row_stride, head_stride}; }
  [[nodiscard]] HeadRows on_device() const {
    return {device.as<std::byte>(), scalar, row_stride, head_stride};
  }
};

/// What one append of one layer is given.
struct TwinInputs {
  TwinRows keys, values, gates;

  TwinInputs(Random& random, const ClassShape& shape, int rows, Scalar type,
             Numbers numbers = Numbers::normal, bool dense = false)
      : keys(random, rows, shape.unit.units * shape.unit.key_streams, shape.key_width, type, 1.0f,
             numbers, dense),
        values(random, rows, shape.unit.units * shape.unit.value_streams, shape.value_width, type,
               0.3f, numbers, dense),
        gates(random, rows, shape.kv_heads, 1, Scalar::f32, 1.0f, numbers, dense) {}
  [[nodiscard]] terse::AppendInputs on_host() const {
    return {keys.on_host(), values.on_host(), gates.on_host()};
  }
  [[nodiscard]] terse::AppendInputs on_device() const {
    return {keys.on_device(), values.on_device(), gates.on_device()};
  }
};

template <Layout L, class Policy>
class Twin {
 public:
  using Host = KVCache<L, Policy>;
  using Device = cuda::KVCache<L, Policy>;
  static constexpr int num_classes = Host::num_classes;
  /// Any class does.
  static constexpr bool evicts = []<std::size_t... I>(std::index_sequence<I...>) {
    return (... || !std::is_same_v<typename Host::template PolicyAt<I>::evictor, NoEviction>);
  }
  (std::make_index_sequence<static_cast<std::size_t>(num_classes)>{});

  explicit Twin(const CacheConfig& config, const typename Host::Configs& policies = {})
      : Twin(config, policies, policies) {}
  /// `on_device`: the same policies with the pointers that the device is to be given.
  Twin(const CacheConfig& config, const typename Host::Configs& policies,
       const typename Host::Configs& on_device)
      : host(config, policies),
        pages_(DeviceBytes::copy_of(host.buffers.pages.span().data(),
                                    host.buffers.pages.span().size())),
        tails_(host.buffers.tails.span().size()),
        state_(Device::plan(config, policies)->state_bytes),
        mirror_(Device::plan(config, policies)->mirror_bytes),
        device(std::move(
            *Device::create(config, {pages_.span(), tails_.span(), state_.span(), mirror_.span()},
                            nullptr, on_device))) {}

  [[nodiscard]] const ClassShape& shape(int layer) const {
    return host.cache.memory_plan().classes[host.cache.place(layer).policy_class].shape;
  }

  /// Appends the same rows to a layer of both.
  Status append(Random& random, int layer, int rows, Scalar type, Numbers numbers = Numbers::normal,
                bool dense = false) {
    const TwinInputs in(random, shape(layer), rows, type, numbers, dense);
    const Status a = host.cache.append(layer, in.on_host());
    const Status b = device.append(layer, in.on_device(), nullptr);
    if (a.code != b.code) return error(StatusCode::mismatch, "append: another status");
    if (a.ok() && after_append) {
      if (Status s = after_append(layer); !s.ok()) return s;
    }
    // The inputs must outlive the launch.
    return a.ok() ? cuda::to_status(cudaDeviceSynchronize(), "append: the kernel failed") : a;
  }

  /// Feeds both the same column sums of a layer, many of which are equal.
  Status observe(Random& random, int layer, Span<const StepPart> parts) {
    std::vector<float> sums(parts.size() * host.cache.column_sum_floats(layer));
    for (float& sum : sums) sum = static_cast<float>(random.below(40)) / 16.0f;
    const DeviceBytes copy = DeviceBytes::copy_of(sums.data(), sums.size());
    const Status a = host.cache.observe(layer, parts, sums);
    const Status b = device.observe(layer, parts, {copy.as<float>(), sums.size()}, nullptr);
    if (a.code != b.code) return error(StatusCode::mismatch, "observe: another status");
    // The sums must outlive the launch.
    return a.ok() ? cuda::to_status(cudaDeviceSynchronize(), "observe: the kernel failed") : a;
  }

  /// Compacts a sequence of both. Gives the tokens moved.
  Expected<std::int64_t> compact(SequenceId id, bool allow_reencoding) {
    const auto plan = device.plan_compact(id);
    const auto a = host.cache.compact(id, allow_reencoding);
    const auto b = device.compact(id, nullptr, allow_reencoding);
    if (a.status().code != b.status().code || a.status().detail != b.status().detail) {
      return error(StatusCode::mismatch, "compact: another status");
    }
    if (!a.ok()) return a.status();
    for (const CompactPlan& own : {*plan, *b}) {
      if (own.pages_needed != a->pages_needed || own.pages_returned != a->pages_returned ||
          own.tokens_moved != a->tokens_moved || own.tokens_reencoded != a->tokens_reencoded) {
        return error(StatusCode::mismatch, "compact: another plan");
      }
    }
    return std::int64_t{a->tokens_moved};
  }

  /// A sequence as the device saves it, or nothing if the host saves it otherwise.
  [[nodiscard]] std::vector<std::byte> saved(SequenceId id) {
    std::vector<std::byte> own(*device.saved_bytes(id)), expected(*host.cache.saved_bytes(id));
    const bool agree = device.save(id, 1, own, nullptr).ok() &&
                       host.cache.save(id, 1, expected).ok() && own == expected;
    return agree ? own : std::vector<std::byte>{};
  }

  /// Whether the sequences, copied to the host, are saved there as the host's are.
  [[nodiscard]] bool copies_agree(const std::vector<SequenceId>& ids) {
    const OwnedBuffers copy{host.cache.memory_plan()};
    if (!device.copy_to(copy.view(), nullptr).ok()) return false;
    auto back = Host::attach(host.config, copy.view(), host.policies);
    if (!back.ok()) return false;
    bool agree = true;
    for (const SequenceId id : ids) {
      std::vector<std::byte> own(*back->saved_bytes(id)), expected(*host.cache.saved_bytes(id));
      agree = agree && back->save(id, 1, own).ok() && host.cache.save(id, 1, expected).ok() &&
              own == expected;
    }
    return agree;
  }

  /// The device's buffers.
  [[nodiscard]] Buffers on_device() const { return {pages_.span(), tails_.span(), state_.span()}; }

  /// A host copy of them.
  [[nodiscard]] OwnedBuffers download() const {
    OwnedBuffers copy{host.cache.memory_plan()};
    for (const auto& [to, from] : {std::pair{&copy.pages, &pages_}, std::pair{&copy.tails, &tails_},
                                   std::pair{&copy.state, &state_}}) {
      const auto bytes = from->template to_host<std::byte>();
      std::memcpy(to->span().data(), bytes.data(), to->span().size());
    }
    return copy;
  }

  /// Whether the live masks of all entries of a sequence are the same in layer 0.
  [[nodiscard]] bool masks_agree(SequenceId id) const requires(num_classes == 1) {
    const OwnedBuffers own = download();
    const auto a = host.cache.layer(0);
    const auto b = cuda::rebase(device.layer(0), on_device(), own.view());
    bool agree = true;
    for (int unit = 0; unit < a.shape.unit.units; ++unit) {
      const int count = a.entry_count(id.index, a.row_of_unit(unit));
      agree = agree && b.entry_count(id.index, b.row_of_unit(unit)) == count;
      for (int e = 0; e < count; ++e) {
        agree = agree && a.live_mask(id.index, unit, e) == b.live_mask(id.index, unit, e);
      }
    }
    return agree;
  }

  /// What is not the same, or nothing.
  [[nodiscard]] std::string difference(int sequences) const {
    if (cudaDeviceSynchronize() != cudaSuccess) return "the device reports an error";
    const OwnedBuffers own = download();
    const Buffers copy = own.view();
    std::string text = bytes("pages", copy.pages, host.buffers.pages.span());
    if (text.empty()) text = bytes("tails", copy.tails, host.buffers.tails.span());
    for (int layer = 0; layer < host.config.num_layers && text.empty(); ++layer) {
      (void)host.cache.visit_layer(layer, [&](const auto& a) {
        (void)device.visit_layer(layer, [&](const auto& b) {
          if constexpr (std::is_same_v<decltype(a), decltype(b)>) {
            const auto c = cuda::rebase(b, on_device(), copy);
            for (int i = 0; i < sequences && text.empty(); ++i) text = tables(a, c, i);
          }
          return Status{};
        });
        return Status{};
      });
    }
    const MemoryUsage a = host.cache.memory_usage(), b = device.memory_usage();
    if (text.empty() && (a.pages_free != b.pages_free || a.live_tokens != b.live_tokens)) {
      text = "memory usage";
    }
    return text;
  }

  CacheFixture<L, Policy> host;
  std::function<Status(int layer)> after_append{};  ///< what else to do with both

 private:
  DeviceBytes pages_, tails_, state_;
  AlignedBytes mirror_;

  [[nodiscard]] static std::string bytes(const char* name, Span<std::byte> a, Span<std::byte> b) {
    for (std::size_t i = 0; i < a.size(); ++i) {
      if (a.data()[i] != b.data()[i]) {
        return std::string(name) + ": byte " + std::to_string(i) + " of " +
               std::to_string(a.size()) + " is " + std::to_string(static_cast<int>(a.data()[i])) +
               ", should be " + std::to_string(static_cast<int>(b.data()[i]));
      }
    }
    return "";
  }

  template <class Ref>
  [[nodiscard]] static std::string tables(const Ref& a, const Ref& b, int i) {
    const SequenceRecord &ra = a.sequences[i], &rb = b.sequences[i];
    if (rb.failed != 0) return "a sequence has failed";
    if (ra.length_tokens != rb.length_tokens || ra.pending_tokens != rb.pending_tokens ||
        ra.alive != rb.alive || ra.generation != rb.generation) {
      return "a sequence's record";
    }
    if (ra.alive == 0) return "";
    const GridRecord &ga = a.grids[i], &gb = b.grids[i];
    if (ga.origin != gb.origin || ga.sealed_end != gb.sealed_end ||
        ga.exact_begin != gb.exact_begin || ga.decoded_before != gb.decoded_before) {
      return "a grid";
    }
    if (ra.pending_tokens > 0 && a.was_appended(i) != b.was_appended(i)) return "was_appended";
    for (int unit = 0; unit < a.shape.unit.units; ++unit) {
      const int row = a.row_of_unit(unit);
      if (a.entry_count(i, row) != b.entry_count(i, row)) return "an entry count";
      for (int e = 0; e < a.entry_count(i, row); ++e) {
        if (a.page(i, row, e) != b.page(i, row, e)) return "a page number";
        if (ra.pending_tokens > 0 && a.was_appended(i) == 0) continue;
        if (a.live_mask(i, unit, e) != b.live_mask(i, unit, e)) return "a live mask";
        for (int t = 0; t < block_tokens; ++t) {
          if (a.position(i, unit, e, t) != b.position(i, unit, e, t)) return "a position";
          if constexpr (token_state_bytes < typename Ref::policy::evictor >> 0) {
            const std::size_t at =
                a.unit_entry(i, unit, e) * block_tokens + static_cast<std::size_t>(t);
            if ((a.live_mask(i, unit, e) >> t & 1) != 0 &&
                std::memcmp(a.token_states + at, b.token_states + at, sizeof *a.token_states) !=
                    0) {
              return "the state of a token";
            }
          }
        }
      }
    }
    return "";
  }

 public:
  Device device;
};

/// Random calls on both. Returns what went wrong first, or nothing.
template <class T>
class TwinRun {
 public:
  TwinRun(T& twin, std::uint64_t seed) : twin_(twin), random_(seed) {}

  /// Tokens that compact has moved.
  [[nodiscard]] std::int64_t moved() const { return moved_; }

  std::string go(int operations) {
    for (int n = 0; n < operations && trouble_.empty(); ++n) {
      operation();
      if (trouble_.empty()) trouble_ = twin_.difference(sequences());
      if (!trouble_.empty())
        trouble_ = "call " + std::to_string(n) + ", " + name_ + ": " + trouble_;
    }
    if (trouble_.empty() && steps_ < operations / 4) trouble_ = "too few steps were taken";
    if (trouble_.empty() && !twin_.copies_agree(ids_)) trouble_ = "a copy on the host is another";
    return trouble_;
  }

 private:
  [[nodiscard]] int sequences() const { return twin_.host.config.max_sequences; }
  void agree(const Status& a, const Status& b) {
    if (trouble_.empty() && a.code != b.code) {
      trouble_ = std::string("host: ") + a.text + ", device: " + b.text;
    }
  }
  void operation() {
    const int dice = random_.below(100);
    if (ids_.empty() || dice < 8) {
      name_ = "create_sequence";
      const auto a = twin_.host.cache.create_sequence();
      const auto b = twin_.device.create_sequence(nullptr);
      agree(a.status(), b.status());
      if (a.ok()) ids_.push_back(*a);
      if (a.ok() && b.ok() && !(*a == *b)) trouble_ = "another handle";
      return;
    }
    const std::size_t k = static_cast<std::size_t>(random_.below(static_cast<int>(ids_.size())));
    if (dice < 78) return step();
    if (dice < 82) return compact(ids_[k]);
    if (T::evicts && random_.below(2) == 0) return evict();
    if (dice < 86) {
      name_ = "fork";
      const auto a = twin_.host.cache.fork(ids_[k]);
      const auto b = twin_.device.fork(ids_[k], nullptr);
      agree(a.status(), b.status());
      if (a.ok()) ids_.push_back(*a);
    } else if (dice < 92) {
      name_ = "truncate";
      const std::int64_t length = *twin_.host.cache.length(ids_[k]);
      const std::int64_t to =
          std::max<std::int64_t>(0, length - random_.below(random_.below(3) == 0 ? 200 : 9));
      agree(twin_.host.cache.truncate(ids_[k], to), twin_.device.truncate(ids_[k], to, nullptr));
    } else if (dice < 97) {
      save_and_load(k);
    } else {
      release(k);
    }
  }
  void release(std::size_t k) {
    name_ = "release";
    agree(twin_.host.cache.release(ids_[k]), twin_.device.release(ids_[k], nullptr));
    ids_.erase(ids_.begin() + static_cast<std::ptrdiff_t>(k));
  }
  void save_and_load(std::size_t k) {
    const std::vector<std::byte> bytes = twin_.saved(ids_[k]);
    if (random_.below(3) != 0) release(k);
    name_ = "save and load";
    const auto a = twin_.host.cache.load(bytes, 1);
    const auto b = twin_.device.load(bytes, 1, nullptr);
    agree(a.status(), b.status());
    if (a.ok()) ids_.push_back(*a);
    if (a.ok() && b.ok() && !(*a == *b)) trouble_ = "another handle";
    if (bytes.empty()) trouble_ = "another file";
  }
  void compact(SequenceId id) {
    if (T::evicts && random_.below(2) == 0) evict();
    name_ = "compact";
    const auto moved = twin_.compact(id, random_.below(3) != 0);
    if (moved.ok()) moved_ += *moved;
    if (moved.status().code == StatusCode::mismatch) trouble_ = moved.status().text;
  }
  void evict() {
    name_ = "evict";
    std::vector<SequenceId> chosen;
    for (const SequenceId id : ids_) {
      if (random_.below(2) == 0) chosen.push_back(id);
    }
    const int incoming = random_.below(4);
    std::int64_t freed = 0;
    for (const SequenceId id : chosen) freed += *twin_.host.cache.evict(id, incoming);
    if constexpr (T::evicts) {
      const auto own = twin_.device.evict({chosen.data(), chosen.size()}, incoming, nullptr);
      if (!own.ok() || *own != freed) trouble_ = "another number of pages became free";
    }
  }
  void step() {
    name_ = "step";
    std::vector<StepPart> parts;
    int rows = 0;
    for (const SequenceId id : ids_) {
      if (random_.below(3) == 0) continue;
      const int kind = random_.below(6);
      const int most = twin_.host.config.max_step_tokens;
      parts.push_back({id, kind < 3   ? 1
                           : kind < 5 ? 1 + random_.below(9)
                                      : 1 + random_.below(most)});
      rows += parts.back().tokens;
    }
    const Status begun = twin_.host.cache.begin_step(parts);
    agree(begun, twin_.device.begin_step(parts, nullptr));
    if (!begun.ok()) return;
    if (random_.below(8) == 0) {
      trouble_ = twin_.difference(sequences());
      if (!trouble_.empty()) trouble_ = "begun: " + trouble_;
    }
    const bool appends = random_.below(12) != 0;
    const Scalar type = static_cast<Scalar>(random_.below(3));
    for (int layer = 0; layer < twin_.host.config.num_layers && appends; ++layer) {
      const Status s = twin_.append(random_, layer, rows, type, Numbers::odd);
      if (!s.ok() && s.code != StatusCode::already_appended) trouble_ = s.text;
    }
    const int end = random_.below(8);
    if (!appends || end == 0) {
      name_ = "abandoned step";
      agree(twin_.host.cache.abandon_step(), twin_.device.abandon_step(nullptr));
    } else if (end <= 2) {
      name_ = "step accepted in part";
      std::vector<int> accepted;
      for (const StepPart& part : parts) accepted.push_back(random_.below(part.tokens + 1));
      agree(twin_.host.cache.commit_step(accepted), twin_.device.commit_step(accepted, nullptr));
    } else {
      agree(twin_.host.cache.commit_step(), twin_.device.commit_step(nullptr));
      for (int layer = 0; layer < twin_.host.config.num_layers && T::evicts; ++layer) {
        const Status s = twin_.observe(random_, layer, parts);
        if (!s.ok() && s.code != StatusCode::unsupported) trouble_ = s.text;
      }
    }
    ++steps_;
  }

  T& twin_;
  Random random_;
  std::vector<SequenceId> ids_;
  std::string name_, trouble_;
  int steps_ = 0;
  std::int64_t moved_ = 0;
};

}  // namespace terse::tests
