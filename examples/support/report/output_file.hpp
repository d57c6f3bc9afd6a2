#pragma once

#include <string>
#include <vector>

namespace terse::examples {

/// Throws InputError unless every path of `outputs` that is not empty can be written and is neither
/// one of `inputs` nor another output, under whatever name. Creates nothing.
void check_output_files(const std::vector<std::string>& inputs,
                        const std::vector<std::string>& outputs);

/// Writes a file and says so on standard error; nothing for an empty path. Throws InputError where
/// it cannot.
void write_output(const std::string& path, const std::string& content);

}  // namespace terse::examples
