#include "report/output_file.hpp"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <system_error>
#include <vector>

#include "report/input_error.hpp"

namespace terse::examples {

namespace {

namespace fs = std::filesystem;

void check_writable(const std::string& path) {
  std::error_code ignored;
  const bool exists = fs::exists(path, ignored);
  if (!std::ofstream(path, std::ios::binary | std::ios::app)) {
    throw InputError("cannot write '" + path + "'");
  }
  if (!exists) fs::remove(path, ignored);
}

}  // namespace

void check_output_files(const std::vector<std::string>& inputs,
                        const std::vector<std::string>& outputs) {
  std::error_code ignored;
  const auto resolved = [&](const std::string& path) {
    return fs::weakly_canonical(path, ignored);
  };
  std::vector<fs::path> taken;
  for (const std::string& path : inputs) taken.push_back(resolved(path));
  for (const std::string& path : outputs) {
    if (path.empty()) continue;
    check_writable(path);
    // Devices, such as /dev/null, may be named twice.
    if (fs::exists(path, ignored) && !fs::is_regular_file(path, ignored)) continue;
    if (std::find(taken.begin(), taken.end(), resolved(path)) != taken.end()) {
      throw InputError("'" + path + "' would overwrite an input or another output");
    }
    taken.push_back(resolved(path));
  }
}

void write_output(const std::string& path, const std::string& content) {
  if (path.empty()) return;
  std::ofstream out(path, std::ios::binary);
  out << content;
  out.flush();
  if (!out) throw InputError("cannot write '" + path + "'");
  std::cerr << "wrote " << path << '\n';
}

}  // namespace terse::examples
