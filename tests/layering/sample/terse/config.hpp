#include <terse/core/span.hpp>  // wrong
#include <terse/version.hpp>
