#include "evaluation/calibration.hpp"

#include <functional>
#include <string>
#include <utility>

#include "terse/interop/eigen.hpp"
#include "terse/quant/shaped.hpp"

#include "evaluation/check.hpp"
#include "evaluation/logit_weights.hpp"
#include "evaluation/output_metric.hpp"
#include "evaluation/window.hpp"
#include "evaluation/window_sums.hpp"
#include "model/mapped_file.hpp"
#include "report/input_error.hpp"
#include "report/sha256.hpp"

namespace terse::examples {

namespace {

using Matrix = Eigen::MatrixXd;
using RowMajor = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

struct HeadMoments {
  VectorMoments keys, values, queries;
};
using Moments = std::vector<HeadMoments>;  // [layer, kv_head]

std::size_t index_of(const LlamaConfig& config, int layer, int kv_head) {
  return static_cast<std::size_t>(layer) * static_cast<std::size_t>(config.kv_heads) +
         static_cast<std::size_t>(kv_head);
}

/// The moments of one window. Queries count as much as errors of keys matter to them.
Moments window_moments(const LlamaModel& model, std::span<const std::int32_t> tokens,
                       int tail_tokens) {
  constexpr int sink_tokens = ShapedSpec{}.tail.sink_tokens;
  const LlamaConfig& config = model.config();
  const int d = config.head_dim, group = config.query_heads / config.kv_heads;
  const auto n = static_cast<Eigen::Index>(tokens.size());
  Moments moments(index_of(config, config.layers, 0));
  (void)run_reference(model, tokens, [&](const LayerTrace& trace) {
    std::vector<float> turned(trace.queries.begin(), trace.queries.end());
    model.apply_rope(turned, config.query_heads, 0);
    const auto head_of = [&](const float* rows, int heads, int head) {
      const Eigen::Map<const RowMajor> all(rows, n, heads * d);
      return Matrix(all.middleCols(head * d, d).transpose().cast<double>());
    };
    for (int h = 0; h < config.kv_heads; ++h) {
      HeadMoments& m = moments[index_of(config, trace.layer, h)];
      m.keys.add(head_of(trace.keys.data(), config.kv_heads, h));
      m.values.add(head_of(trace.values.data(), config.kv_heads, h));
      for (int g = 0; g < group; ++g) {
        const int head = h * group + g;
        const std::vector<double> weights = logit_weights(
            config, trace, turned, head, head_output_metric(config, model.layer(trace.layer), head),
            sink_tokens, tail_tokens);
        const Eigen::Map<const Eigen::VectorXd> weight(weights.data(), n);
        m.queries.add(head_of(turned.data(), config.query_heads, head) *
                      weight.cwiseSqrt().asDiagonal());
      }
    }
  });
  return moments;
}

void add(Moments* sum, Moments& part) {
  if (sum->empty()) {
    *sum = std::move(part);
    return;
  }
  for (std::size_t head = 0; head < sum->size(); ++head) {
    (*sum)[head].keys.add(part[head].keys);
    (*sum)[head].values.add(part[head].values);
    (*sum)[head].queries.add(part[head].queries);
  }
}

[[noreturn]] void refuse(const std::string& what, const Status& status) {
  throw InputError(what + ": " + status.text + " (" + std::to_string(status.detail) + ")");
}

}  // namespace

std::uint64_t fingerprint_of_model(const std::string& path) {
  return std::stoull(sha256_of_file(path).substr(0, 16), nullptr, 16);
}

Calibration calibrate(const LlamaModel& model, std::uint64_t model_fingerprint,
                      std::span<const std::int32_t> tokens, int threads,
                      const std::function<void(int)>& progress, int tail_tokens) {
  const LlamaConfig& config = model.config();
  const Moments sum = sum_over_windows(
      model, tokens, threads, progress,
      [&](std::span<const std::int32_t> window) {
        return window_moments(model, window, tail_tokens);
      },
      add);
  for (const HeadMoments& m : sum) {
    if (m.queries.products.trace() != 0) continue;
    throw InputError("a tail of " + std::to_string(tail_tokens) +
                     " exact tokens (--tail) leaves nothing of windows of " +
                     std::to_string(window_tokens(model, tokens.size())) + " tokens");
  }
  // [make]
  auto made = Calibration::make(
      {config.layers, config.kv_heads, config.head_dim}, model_fingerprint,
      [&](Side side, int layer, int head, float* stream) {
        const HeadMoments& m = sum[index_of(config, layer, head)];
        return side == Side::key
                   ? calibrate_stream(side, m.keys, m.queries.products / m.queries.count, {},
                                      stream)
                   : calibrate_stream(side, m.values,
                                      output_metric(config, model.layer(layer), head), {}, stream);
      });
  // [make]
  if (!made.ok()) refuse("the model cannot be calibrated", made.status());
  return std::move(*made);
}

Calibration load_calibration(const std::string& path, const LlamaModel& model,
                             std::uint64_t model_fingerprint) {
  const MappedFile file(path);
  auto loaded = Calibration::load({file.bytes().data(), file.bytes().size()}, model_fingerprint);
  if (!loaded.ok()) refuse("'" + path + "' is no calibration of this model", loaded.status());
  const CalibrationShape& shape = loaded->shape();
  const LlamaConfig& config = model.config();
  if (shape.slots != config.layers || shape.kv_heads != config.kv_heads ||
      shape.head_dim != config.head_dim) {
    throw InputError("'" + path + "' is no calibration of this model: its sizes differ");
  }
  return std::move(*loaded);
}

std::optional<Calibration> load_if_named(const std::string& path, const LlamaModel& model,
                                         const std::string& model_path) {
  if (path.empty()) return std::nullopt;
  return load_calibration(path, model, fingerprint_of_model(model_path));
}

std::string file_of(const Calibration& calibration) {
  std::string bytes(calibration.saved_bytes(), '\0');
  check(calibration.save({reinterpret_cast<std::byte*>(bytes.data()), bytes.size()}));
  return bytes;
}

}  // namespace terse::examples
