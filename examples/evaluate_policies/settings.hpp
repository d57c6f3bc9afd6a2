#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "evaluation/session.hpp"

namespace terse::examples {

/// What evaluate_policies was asked to do.
struct Settings {
  std::string model_path;
  std::vector<std::string> text_paths;
  std::string haystack_path;     ///< passkeys are hidden here; empty: in the first text
  std::string calibration_path;  ///< factors and calibrations come from here; empty: the last text
  std::string calibration_file;  ///< written by calibrate; empty: made of that text
  static constexpr std::int64_t haystack_skip_chars = 30000;  ///< bytes before the haystack
  std::vector<std::string> policies;
  std::vector<std::string> schedule_paths;  ///< written by schedule_bits: a row each
  std::int64_t skip_chars = 20000;
  int window_tokens = 2048;
  int windows = 1;
  std::vector<int> window_numbers;  ///< rising; those that are run
  int passkeys = 4;
  bool passkeys_given = false;  ///< the number was asked for: a model without them is refused
  int passkey_tokens = 1024;
  int calibration_tokens = 4096;
  int speed_steps = 8;
  int threads = 0;
  Processor processor = Processor::cpu;  ///< of the products and the caches
  bool full = false;
  bool chunk_tail = false;
  bool list_policies = false;
  std::string csv_path, svg_path, json_path, markdown_path;
};

/// Reads the command line. Returns false when the program should end with exit code 0 (help or the
/// list of policies was printed); throws InputError for anything wrong.
[[nodiscard]] bool read_settings(int argc, const char* const* argv, Settings* settings);

}  // namespace terse::examples
