#include <immintrin.h>
#include <terse/cache/cache.hpp>
#include <terse/testing/conformance.hpp>  // wrong
