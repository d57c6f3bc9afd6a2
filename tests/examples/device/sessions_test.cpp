// Sessions whose caches lie on the device, and cuBLAS's products, beside those of the processor.

#include <algorithm>
#include <cmath>
#include <span>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "evaluation/decoder.hpp"
#include "evaluation/device.hpp"
#include "evaluation/policies.hpp"
#include "evaluation/window.hpp"
#include "model/matmul.hpp"
#include "report/input_error.hpp"
#include "row_factors.hpp"
#include "small_model.hpp"
#include "support/catch.hpp"
#include "support/random_calibration.hpp"

using namespace terse::examples;
using terse_test::random_tokens;
using terse_test::RandomValues;
using terse_test::relative_l2;
using terse_test::small_model_file;

namespace {

bool has_device() {
  try {
    return !device_name().empty();
  } catch (const InputError&) {
    return false;
  }
}

std::vector<float> last_logits(const LlamaModel& model, const std::vector<float>& x) {
  return model.logits(
      std::span<const float>(x).last(static_cast<std::size_t>(model.config().hidden)));
}

}  // namespace

TEST_CASE("products of the device", "[cuda][sessions]") {
  if (!has_device()) TERSE_SKIP("no CUDA device");
  ThreadPool pool{1};
  RandomValues random(3);
  for (const auto& [rows, in, out] : {std::tuple{1, 64, 200}, {70, 576, 33}, {5, 100, 1}}) {
    std::vector<float> x(static_cast<std::size_t>(rows * in)),
        w(static_cast<std::size_t>(in * out));
    for (float& value : x) value = random.next();
    for (float& value : w) value = random.next();
    std::vector<float> own(static_cast<std::size_t>(rows * out)), expected(own.size());
    const auto products = make_device_products();  // of weights that stay where they are
    matmul(pool, x.data(), rows, w.data(), in, out, expected.data());
    for (int turn = 0; turn < 2; ++turn) {  // the second time with weights that are there
      std::fill(own.begin(), own.end(), -1.0f);
      products->multiply(x.data(), rows, w.data(), in, out, own.data());
      CHECK(relative_l2(own, expected) < 1e-5);
    }
  }
}

TEST_CASE("what the device refuses ends a program", "[cuda][sessions]") {
  if (!has_device()) TERSE_SKIP("no CUDA device");
  ThreadPool pool{1};
  const LlamaModel model = LlamaModel::load(small_model_file(), pool);
  CHECK_NOTHROW(check_on_device(model.config()));
  LlamaConfig other = model.config();
  other.head_dim = 96;
  CHECK_THROWS_AS(check_on_device(other), InputError);
  const LlamaConfig& shape = model.config();
  const auto session = policy_row("int8").make_session(
      {.model = &model, .max_tokens = 8, .max_step_tokens = 8, .processor = Processor::cuda});
  std::vector<float> keys(static_cast<std::size_t>(shape.kv_heads * shape.head_dim), 1.0f);
  const std::vector<float> values = keys;
  session->begin_step(1);
  session->append_layer(0, keys.data(), values.data());
  CHECK_NOTHROW(session->commit_step());
  keys[3] = NAN;
  session->begin_step(1);
  session->append_layer(0, keys.data(), values.data());
  std::string what;
  try {
    session->commit_step();
  } catch (const std::runtime_error& e) {
    what = e.what();
  }
  CHECK(what.find("NaN") != std::string::npos);
}

TEST_CASE("every row gives on the device what it gives on the host", "[cuda][sessions]") {
  if (!has_device()) TERSE_SKIP("no CUDA device");
  ThreadPool pool{1};
  const LlamaModel host_model = LlamaModel::load(small_model_file(), pool);
  const auto products = make_device_products();
  LlamaModel device_model = LlamaModel::load(small_model_file(), pool);
  device_model.use_products(*products);
  const auto tokens = random_tokens(300, host_model.config().vocabulary, 8);
  const bool chunk_tail = GENERATE(false, true);
  CAPTURE(chunk_tail);
  terse_test::RowFactors factors(host_model);
  const LlamaConfig& shape = host_model.config();
  const terse::Calibration calibration =
      terse::tests::random_calibration({shape.layers, shape.kv_heads, shape.head_dim});
  for (const PolicyRow& row : policy_rows()) {
    if (!row.on_device) continue;
    const SessionConfig config{.model = &host_model,
                               .max_tokens = 300,
                               .max_step_tokens = 128,
                               .chunk_tail = chunk_tail,
                               .factors = factors.of(row),
                               .calibration = row.calibrated ? &calibration : nullptr};
    SessionConfig on_device = config;
    on_device.model = &device_model;
    on_device.processor = Processor::cuda;
    INFO(row.name);
    const auto session = row.make_session(config);
    const auto own = row.make_session(on_device);
    WindowMemory memory, own_memory;
    const std::vector<float> expected =
        last_logits(host_model, run_window(host_model, config, *session, tokens, &memory));
    const std::vector<float> result =
        last_logits(device_model, run_window(device_model, on_device, *own, tokens, &own_memory));
    // Attention's own error moves codes of later layers; and it shows who has computed.
    CHECK(relative_l2(result, expected) < 2e-2);
    CHECK(result != expected);
    CHECK(own_memory.bits_per_element == memory.bits_per_element);
    // Tables of the device's own are counted too.
    CHECK(own_memory.bytes_per_token == Approx(memory.bytes_per_token).epsilon(0.02));

    on_device.layers = device_model.config().layers;
    const auto together = row.make_session(on_device);
    CHECK(relative_l2(decode(device_model, on_device, *together, tokens, 0), result) < 2e-2);
  }
}
