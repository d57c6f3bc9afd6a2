#include <terse/cache/cache.hpp>
#include <terse/cpu/attend.hpp>
#include <terse/testing/conformance.hpp>  // wrong
