#include <terse/cache/cache.hpp>
#include <terse/cpu/attend.hpp>
#include <terse/cuda/kernel.cuh>  // wrong
#include <terse/check/safety.hpp>  // wrong
#include <terse/testing/conformance.hpp>  // wrong
