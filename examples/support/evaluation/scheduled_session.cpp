#include "evaluation/scheduled_session.hpp"

#include <algorithm>
#include <limits>
#include <map>
#include <vector>

namespace terse::examples {

namespace {

class ScheduledSession final : public Session {
 public:
  ScheduledSession(const SessionConfig& config, const LayerSchedule& schedule)
      : config_(config), schedule_(schedule) {
    check_layers(schedule, config.model->config());
    std::map<const PolicyRow*, std::unique_ptr<Session>> policies;
    for (const PolicyRow* row : schedule) {
      auto& session = policies[row];
      if (session == nullptr) session = session_of(*row, config.first_layer);
      const double share = 1.0 / static_cast<double>(schedule.size());
      bits_per_element_ += share * session->memory().bits_per_element;
      generation_overhead_bytes_ += share * session->generation_overhead_bytes();
    }
    restart(config.first_layer);
  }

  void restart(int first_layer) override {
    sessions_.clear();
    for (int i = 0; i < config_.layers; ++i) {
      const int layer = first_layer + i;
      sessions_.push_back(session_of(*schedule_[static_cast<std::size_t>(layer)], layer));
    }
  }

  [[nodiscard]] int natural_step_tokens() const override {
    int step = std::numeric_limits<int>::max();
    for (const auto& session : sessions_) step = std::min(step, session->natural_step_tokens());
    return step;
  }
  void begin_step(int tokens) override {
    for (const auto& session : sessions_) session->begin_step(tokens);
  }
  [[nodiscard]] bool projects() const override { return false; }
  void attend_layer(int layer, const float* queries, const float* keys, const float* values,
                    float* output) override {
    of_layer(layer).attend_layer(0, queries, keys, values, output);
  }
  void append_layer(int layer, const float* keys, const float* values) override {
    of_layer(layer).append_layer(0, keys, values);
  }
  void commit_step() override {
    for (const auto& session : sessions_) session->commit_step();
  }

  [[nodiscard]] SessionMemory memory() const override {
    SessionMemory sum{.bits_per_element = bits_per_element_};
    for (const auto& session : sessions_) {
      const SessionMemory own = session->memory();
      sum.page_bytes += own.page_bytes;
      sum.other_bytes += own.other_bytes;
    }
    return sum;
  }
  [[nodiscard]] double generation_overhead_bytes() const override {
    return generation_overhead_bytes_;
  }

 private:
  [[nodiscard]] std::unique_ptr<Session> session_of(const PolicyRow& row, int layer) const {
    SessionConfig config = config_;
    config.first_layer = layer;
    config.layers = 1;
    if (!row.calibrated) config.calibration = nullptr;
    return row.make_session(config);
  }
  [[nodiscard]] Session& of_layer(int layer) { return *sessions_[static_cast<std::size_t>(layer)]; }

  SessionConfig config_;
  LayerSchedule schedule_;
  std::vector<std::unique_ptr<Session>> sessions_;  // [layer that is served]
  double bits_per_element_ = 0;                     // of the whole model
  double generation_overhead_bytes_ = 0;
};

}  // namespace

std::unique_ptr<Session> make_scheduled_session(const SessionConfig& config,
                                                const LayerSchedule& schedule) {
  return std::make_unique<ScheduledSession>(config, schedule);
}

}  // namespace terse::examples
