#include "evaluation/session.hpp"

namespace terse::examples {

Qkv session_inputs(const LlamaModel& model, const SessionConfig& config, const Session& session,
                   int layer, std::span<const float> normed, int position) {
  const int hidden = model.config().hidden;
  const int tokens = static_cast<int>(normed.size()) / hidden;
  Qkv qkv = model.qkv(layer, normed, position, Rope::applied,
                      session.projects() ? Rope::none : Rope::applied);
  if (session.projects()) {
    const LayerFactors& f = config.factors->at(static_cast<std::size_t>(layer));
    qkv.k.resize(static_cast<std::size_t>(tokens) * static_cast<std::size_t>(f.key_rank));
    qkv.v.resize(static_cast<std::size_t>(tokens) * static_cast<std::size_t>(f.value_rank));
    model.multiply(normed.data(), tokens, f.key_down.data(), hidden, f.key_rank, qkv.k.data());
    model.multiply(normed.data(), tokens, f.value_down.data(), hidden, f.value_rank, qkv.v.data());
  }
  return qkv;
}

}  // namespace terse::examples
