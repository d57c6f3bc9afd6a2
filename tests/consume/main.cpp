#include <cstdio>

#include <terse/terse.hpp>

int main() {
  std::printf("terse %s\n", terse::version_string);
  return 0;
}
