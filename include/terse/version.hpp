#pragma once

/// The one place where the version is written; CMakeLists.txt reads these three lines.
#define TERSE_VERSION_MAJOR 0
#define TERSE_VERSION_MINOR 1
#define TERSE_VERSION_PATCH 0

#define TERSE_DETAIL_STRINGIFY(x) #x
#define TERSE_DETAIL_VERSION(major, minor, patch) \
  TERSE_DETAIL_STRINGIFY(major)                   \
  "." TERSE_DETAIL_STRINGIFY(minor) "." TERSE_DETAIL_STRINGIFY(patch)

/// "MAJOR.MINOR.PATCH" as a string literal.
#define TERSE_VERSION_STRING \
  TERSE_DETAIL_VERSION(TERSE_VERSION_MAJOR, TERSE_VERSION_MINOR, TERSE_VERSION_PATCH)

namespace terse {

inline constexpr int version_major = TERSE_VERSION_MAJOR;
inline constexpr int version_minor = TERSE_VERSION_MINOR;
inline constexpr int version_patch = TERSE_VERSION_PATCH;

/// "MAJOR.MINOR.PATCH", for logs and for the headers of saved files.
inline constexpr const char* version_string = TERSE_VERSION_STRING;

}  // namespace terse
