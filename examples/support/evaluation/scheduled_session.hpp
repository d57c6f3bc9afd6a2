#pragma once

#include <memory>

#include "evaluation/layer_schedule.hpp"
#include "evaluation/session.hpp"

namespace terse::examples {

/// A session whose layers have the policies of a schedule of all the model's layers, each in a
/// cache of its own: layers share nothing, so one cache of terse::Schedule's classes gives the
/// same. What generation adds is counted as the mean of the policies, weighed by their layers.
/// Throws InputError as check_layers does.
[[nodiscard]] std::unique_ptr<Session> make_scheduled_session(const SessionConfig& config,
                                                              const LayerSchedule& schedule);

}  // namespace terse::examples
