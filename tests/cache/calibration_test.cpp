// Calibrations as files, and caches that use them.
#include "terse/cache/calibration.hpp"

#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "support/cache_driver.hpp"
#include "support/catch.hpp"
#include "support/random_calibration.hpp"

using namespace terse;
using namespace terse::tests;

namespace {

constexpr CalibrationShape sizes{2, 2, 16};

std::vector<std::byte> saved(const Calibration& calibration) {
  std::vector<std::byte> file(calibration.saved_bytes());
  REQUIRE(calibration.save({file.data(), file.size()}).ok());
  return file;
}

StatusCode load_code(const std::vector<std::byte>& file, std::uint64_t fingerprint = 0) {
  return Calibration::load({file.data(), file.size()}, fingerprint).status().code;
}

/// FNV-1a, 64 bits, as the format says.
std::uint64_t fnv1a(const std::byte* data, std::size_t bytes) {
  std::uint64_t hash = 0xcbf29ce484222325ull;
  for (std::size_t i = 0; i < bytes; ++i) {
    hash = (hash ^ std::to_integer<std::uint64_t>(data[i])) * 0x100000001b3ull;
  }
  return hash;
}

template <class T>
void put(std::vector<std::byte>& file, std::size_t at, T value) {
  std::memcpy(file.data() + at, &value, sizeof value);
}

/// Gives a changed file the checksums of an honest one.
std::vector<std::byte> sealed(std::vector<std::byte> file) {
  put(file, 32, fnv1a(file.data() + 48, file.size() - 48));
  put(file, 40, std::uint64_t{0});
  put(file, 40, fnv1a(file.data(), 48));
  return file;
}

template <class Spoil>
StatusCode make_code(Spoil&& spoil) {
  Random random(1);
  const auto made = Calibration::make(sizes, 0, [&](Side side, int slot, int head, float* stream) {
    fill_randomly(random, side, sizes.head_dim, stream);
    if (slot == 1 && head == 1) spoil(side, stream);
  });
  return made.status().code;
}

CacheConfig config() {
  return {.num_layers = 2,
          .num_query_heads = 4,
          .num_kv_heads = 2,
          .head_dim = 16,
          .max_sequences = 2,
          .max_tokens = 320,
          .max_step_tokens = 64};
}

}  // namespace

TEST_CASE("a loaded calibration has the same numbers and the same identity", "[calibration]") {
  const Calibration made = random_calibration(sizes, 7, 99);
  const auto file = saved(made);
  const auto loaded = Calibration::load({file.data(), file.size()}, 99);
  REQUIRE(loaded.ok());
  CHECK(loaded->model_fingerprint() == 99);
  CHECK(loaded->view().identity == made.view().identity);
  CHECK(random_calibration(sizes, 8).view().identity != made.view().identity);
  const auto bytes = static_cast<std::size_t>(CalibrationLayout{16}.floats()) * 2 * sizeof(float);
  for (std::size_t s = 0; s < 2; ++s) {
    const SlotCalibration a = made.view().slots[s], b = loaded->view().slots[s];
    CHECK(std::memcmp(a.keys, b.keys, bytes) == 0);
    CHECK(std::memcmp(a.values, b.values, bytes) == 0);
  }
  // 2 slots x 2 sides x 2 heads of 2 x 16 fp32 and 16 x 16 + 120 fp16.
  CHECK(file.size() == 48 + 8 * (128 + 2 * 376));
}

TEST_CASE("files that are not a calibration of the model are refused", "[calibration]") {
  const auto file = saved(random_calibration(sizes, 7, 99));
  CHECK(load_code(file) == StatusCode::ok);
  CHECK(load_code(file, 98) == StatusCode::mismatch);
  for (std::size_t size : {std::size_t{0}, std::size_t{47}, std::size_t{48}, file.size() - 1}) {
    CHECK(load_code({file.begin(), file.begin() + static_cast<std::ptrdiff_t>(size)}) ==
          StatusCode::corrupt_data);
  }
  auto longer = file;
  longer.push_back(std::byte{0});
  CHECK(load_code(longer) == StatusCode::corrupt_data);
  for (std::size_t at = 0; at < file.size(); at += at < 64 ? 1 : 37) {
    auto broken = file;
    broken[at] ^= std::byte{0x10};
    CAPTURE(at);
    CHECK(load_code(broken) == (at < 12 ? StatusCode::mismatch : StatusCode::corrupt_data));
  }
  std::vector<std::byte> small(file.size() - 1);
  CHECK(random_calibration(sizes).save({small.data(), small.size()}).code ==
        StatusCode::buffer_too_small);
}

TEST_CASE("files with honest checksums are not believed either", "[calibration]") {
  const auto file = saved(random_calibration(sizes, 7, 99));
  REQUIRE(load_code(sealed(file)) == StatusCode::ok);
  const auto code_with = [&](std::size_t at, auto value) {
    auto changed = file;
    put(changed, at, value);
    return load_code(sealed(changed));
  };
  constexpr std::size_t slots = 12, kv_heads = 16, head_dim = 20;  // header
  for (const std::size_t field : {slots, kv_heads, head_dim}) {
    for (const std::int32_t size : {0, -1, 1 << 30}) {
      CHECK(code_with(field, size) == StatusCode::invalid_argument);
    }
    CHECK(code_with(field, std::int32_t{3}) == StatusCode::corrupt_data);
  }
  constexpr std::size_t mean = 48, weight = mean + 64, basis = weight + 64;  // of the first stream
  CHECK(code_with(mean, std::numeric_limits<float>::infinity()) == StatusCode::not_finite);
  CHECK(code_with(weight, std::numeric_limits<float>::quiet_NaN()) == StatusCode::not_finite);
  CHECK(code_with(weight, 0.0f) == StatusCode::invalid_argument);
  CHECK(code_with(weight, 1e38f) == StatusCode::invalid_argument);
  CHECK(code_with(basis, std::uint16_t{0x7c00}) == StatusCode::not_finite);
  constexpr std::size_t values = mean + 2 * (128 + 2 * 376);
  CHECK(code_with(values, 1.0f) == StatusCode::invalid_argument);
  auto singular = file;  // rows of channels 0, 1 and 2: the first is the others' sum
  for (std::size_t k = 0; k < 16; ++k) {
    const auto entry = [&](std::size_t row) { return basis + 2 * (row * 16 + k); };
    const float first = static_cast<float>(k) * 0.375f - 2.0f;
    const float second = static_cast<float>(k * k % 7) * 0.25f - 0.5f;
    put(singular, entry(1), to_f16_saturating(first));
    put(singular, entry(2), to_f16_saturating(second));
    put(singular, entry(0), to_f16_saturating(first + second));
  }
  CHECK(load_code(sealed(singular)) == StatusCode::corrupt_data);
}

TEST_CASE("stored calibrations do not change", "[calibration]") {
  const auto file = saved(random_calibration(sizes, 7, 99));
  CHECK(fnv1a(file.data(), file.size()) == 0xe51349a97b7f9de2ull);
}

TEST_CASE("numbers that cannot be used are refused", "[calibration]") {
  const CalibrationLayout at{16};
  CHECK(make_code([](Side, float*) {}) == StatusCode::ok);
  CHECK(make_code([&](Side, float* s) { s[at.mean()] = NAN; }) == StatusCode::not_finite);
  CHECK(make_code([&](Side, float* s) { s[at.to_basis() + 5] = INFINITY; }) ==
        StatusCode::not_finite);
  CHECK(make_code([&](Side, float* s) { s[at.weight() + 3] = 0.0f; }) ==
        StatusCode::invalid_argument);
  CHECK(make_code([&](Side, float* s) { s[at.weight() + 3] = 1e13f; }) ==
        StatusCode::invalid_argument);
  CHECK(make_code([&](Side, float* s) { s[at.to_basis() + 5] = 7e4f; }) ==
        StatusCode::invalid_argument);
  CHECK(make_code([&](Side side, float* s) { s[at.mean()] = side == Side::value ? 1.0f : 0.0f; }) ==
        StatusCode::invalid_argument);
  CHECK(make_code([&](Side, float* s) {
          for (int k = 0; k < 16; ++k) s[at.to_basis() + k] = 2.0f * s[at.to_basis() + 16 + k];
        }) == StatusCode::corrupt_data);
  CHECK(Calibration::make({0, 1, 16}, 0, [](Side, int, int, float*) {}).status().code ==
        StatusCode::invalid_argument);
  CHECK(Calibration::make({1, 1, 5000}, 0, [](Side, int, int, float*) {}).status().code ==
        StatusCode::invalid_argument);
}

TEST_CASE("a cache takes the calibration of all its slots or none", "[calibration]") {
  using Cache = KVCache<PagedLayout<>, Shaped2>;
  const auto code = [](CalibrationView view) {
    PolicyConfig<PolicyOf<Shaped2>> policy;
    policy.calibration = view;
    return Cache::plan(config(), {policy}).status().code;
  };
  const Calibration whole = random_calibration({2, 2, 16});
  const CalibrationView view = whole.view();
  CHECK(code({}) == StatusCode::ok);
  CHECK(code(view) == StatusCode::ok);
  const auto changed = [&](auto&& change) {
    CalibrationView other = view;
    change(other);
    return code(other);
  };
  CHECK(changed([](CalibrationView& v) { v.slots.count = 1; }) == StatusCode::invalid_argument);
  CHECK(changed([](CalibrationView& v) { v.kv_heads = 1; }) == StatusCode::invalid_argument);
  CHECK(changed([](CalibrationView& v) { v.head_dim = 64; }) == StatusCode::invalid_argument);
  CHECK(changed([](CalibrationView& v) { v.identity = 0; }) == StatusCode::invalid_argument);
  CHECK(changed([](CalibrationView& v) { v.slots.pointer = nullptr; }) == StatusCode::null_pointer);
  const SlotCalibration without_values[] = {view.slots[0], {view.slots[1].keys, nullptr}};
  CHECK(changed([&](CalibrationView& v) { v.slots = without_values; }) == StatusCode::null_pointer);
  PolicyConfig<PolicyOf<Kivi2>> kivi;
  kivi.calibration = view;
  CHECK(KVCache<PagedLayout<>, Kivi2>::plan(config(), {kivi}).status().code ==
        StatusCode::invalid_argument);
}

TEST_CASE("sequences saved under one calibration are not loaded under another", "[calibration]") {
  const Calibration first = random_calibration({2, 2, 16}, 1),
                    other = random_calibration({2, 2, 16}, 2);
  const auto policy = [](const Calibration* calibration) {
    PolicyConfig<PolicyOf<Shaped2>> p;
    if (calibration != nullptr) p.calibration = calibration->view();
    return p;
  };
  Driver<PagedLayout<>, Shaped2> from(config(), policy(&first)), same(config(), policy(&first)),
      different(config(), policy(&other)), plain(config(), policy(nullptr));
  const SequenceId s = from.create();
  REQUIRE(from.fill(s, 200, 64).ok());
  std::vector<std::byte> bytes(*from.cache.saved_bytes(s));
  REQUIRE(from.cache.save(s, 5, {bytes.data(), bytes.size()}).ok());
  const Span<const std::byte> in{bytes.data(), bytes.size()};
  const auto loaded = same.cache.load(in, 5);
  REQUIRE(loaded.ok());
  CHECK(same_bits(same.attend(*loaded, 3), from.attend(s, 3)));
  CHECK(different.cache.load(in, 5).status().code == StatusCode::mismatch);
  CHECK(plain.cache.load(in, 5).status().code == StatusCode::mismatch);
}

TEST_CASE("a cache is attached under its own calibration only", "[calibration]") {
  const Calibration first = random_calibration({2, 2, 16}, 1);
  const Calibration other = random_calibration({2, 2, 16}, 2);
  using Cache = KVCache<PagedLayout<>, Shaped2>;
  PolicyConfig<PolicyOf<Shaped2>> own, foreign, none;
  own.calibration = first.view();
  foreign.calibration = other.view();
  Driver<PagedLayout<>, Shaped2> d(config(), own);
  const SequenceId s = d.create();
  REQUIRE(d.fill(s, 100, 64).ok());
  const OwnedBuffers copy = d.buffers.copy();
  CHECK(Cache::attach(config(), copy.view(), {own}).ok());
  CHECK(Cache::attach(config(), copy.view(), {foreign}).status().code == StatusCode::mismatch);
  CHECK(Cache::attach(config(), copy.view(), {none}).status().code == StatusCode::mismatch);
}

namespace {

/// The first block of a stream as the codec alone makes it of the driver's tokens.
template <class C>
std::vector<std::byte> encoded_alone(const CalibrationView& calibration, const ClassShape& shape,
                                     Side side, int slot, int head, std::uint64_t seed, int layer) {
  const SlotCalibration& own = calibration.slots[static_cast<std::size_t>(slot)];
  const CodecContext context{
      side, 16,
      (side == Side::key ? own.keys : own.values) + head * CalibrationLayout{16}.floats()};
  const TokenRows rows = token_rows(shape, seed, layer, 0, block_tokens);
  std::vector<std::byte> block(C::record(side, 16).bytes);
  for (int t = 0; t < block_tokens; ++t) {
    const auto& all = side == Side::key ? rows.keys : rows.values;
    std::vector<float> x(all.begin() + (t * 2 + head) * 16, all.begin() + (t * 2 + head + 1) * 16);
    C::to_basis(context, x.data());
    C::encode_token(context, x.data(), t, block.data());
  }
  return block;
}

template <class Ref>
bool stores(const Ref& r, SequenceId s, Side side, int head, const std::vector<std::byte>& block) {
  const std::byte* stored = r.block(s.index, head, 0) +
                            (side == Side::key ? r.shape.key_offset(0) : r.shape.value_offset(0));
  return std::memcmp(stored, block.data(), block.size()) == 0;
}

}  // namespace

TEST_CASE("each stream is encoded with its own part of the calibration", "[calibration]") {
  const Calibration calibration = random_calibration({2, 2, 16});
  PolicyConfig<PolicyOf<Shaped3K2V>> policy;
  policy.calibration = calibration.view();
  policy.tail = TailSpec{};
  Driver<PagedLayout<>, Shaped3K2V> d(config(), policy);
  const SequenceId s = d.create();
  REQUIRE(d.fill(s, 64, 64).ok());
  for (int layer = 0; layer < 2; ++layer) {
    for (int head = 0; head < 2; ++head) {
      CAPTURE(layer, head);
      CHECK(stores(d.cache.layer(layer), s, Side::key, head,
                   encoded_alone<Shaped3K2V::key_codec>(calibration.view(), d.shape(), Side::key,
                                                        layer, head, 1, layer)));
      CHECK(stores(d.cache.layer(layer), s, Side::value, head,
                   encoded_alone<Shaped3K2V::value_codec>(calibration.view(), d.shape(),
                                                          Side::value, layer, head, 1, layer)));
    }
  }
}

TEST_CASE("a schedule's classes have calibrations of their own", "[calibration]") {
  using Classes = Schedule<Identity, Shaped2, Shaped3>;
  // Class 1 has two slots and a calibration, class 2 has neither more than one nor any.
  constexpr LayerPlace places[] = {{0, 0}, {0, 1}, {0, 2}, {1, 1}};
  CacheConfig c = config();
  c.num_layers = 4;
  c.layers = places;
  const Calibration calibration = random_calibration({2, 2, 16});
  PolicyConfig<PolicyOf<Shaped2>> second;
  second.calibration = calibration.view();
  second.tail = TailSpec{};
  PolicyConfig<PolicyOf<Shaped3>> third;
  third.tail = TailSpec{};
  CacheFixture<PagedLayout<>, Classes> f(c, {{}, second, third});
  const SequenceId s = *f.cache.create_sequence();
  const StepPart part{s, 64};
  const ClassShape& shape = f.cache.memory_plan().classes[1].shape;
  REQUIRE(f.cache.begin_step({&part, 1}).ok());
  for (int layer = 0; layer < 4; ++layer) {
    REQUIRE(f.cache.append(layer, append_inputs(shape, token_rows(shape, 1, layer, 0, 64))).ok());
  }
  REQUIRE(f.cache.commit_step().ok());
  for (const int layer : {1, 3}) {
    const Status status = f.cache.visit_layer(layer, [&](const auto& r) {
      for (int head = 0; head < 2; ++head) {
        CAPTURE(layer, head);
        CHECK(stores(r, s, Side::key, head,
                     encoded_alone<Shaped2::key_codec>(calibration.view(), shape, Side::key,
                                                       layer == 1 ? 0 : 1, head, 1, layer)));
      }
      return Status{};
    });
    CHECK(status.ok());
  }
  const Status status = f.cache.visit_layer(2, [&](const auto& r) {
    CHECK(r.context(Side::key, 1, 0).calibration == nullptr);
    return Status{};
  });
  CHECK(status.ok());
}
