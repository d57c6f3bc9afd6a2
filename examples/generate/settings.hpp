#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace terse::examples {

/// What generate was asked to do.
struct Settings {
  std::string model_path;
  std::string prompt;
  std::string context_path;      ///< its text stands before the prompt; empty: none
  std::string calibration_path;  ///< low-rank factors come from here; empty: none
  std::vector<std::string> policies = {"identity", "kivi-2"};
  int tokens = 192;
  int calibration_tokens = 4096;
  double temperature = 0;  ///< 0: the most probable token
  std::int64_t seed = 1;
  int threads = 0;
  bool chat = false;
};

/// Reads the command line. Returns false when help was printed; throws InputError for anything
/// wrong.
[[nodiscard]] bool read_settings(int argc, const char* const* argv, Settings* settings);

}  // namespace terse::examples
