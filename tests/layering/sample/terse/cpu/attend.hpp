#include <immintrin.h>
#include <terse/cache/cache.hpp>
#include <terse/testing/conformance.hpp>  // wrong
#include <terse/check/safety.hpp>  // wrong
