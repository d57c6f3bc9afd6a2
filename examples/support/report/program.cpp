#include "report/program.hpp"

#include <exception>
#include <iostream>

#include "report/input_error.hpp"

namespace terse::examples {

int run_program(const std::string& name, const std::function<void()>& body) {
  try {
    body();
    return 0;
  } catch (const InputError& error) {
    std::cerr << name << ": " << error.what() << '\n';
    return 2;
  } catch (const std::exception& error) {
    std::cerr << name << ": internal error: " << error.what() << '\n';
    return 1;
  }
}

}  // namespace terse::examples
