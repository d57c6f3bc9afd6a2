#include <cstddef>
#include <terse/config.hpp>
#include <terse/core/math.hpp>
#include <terse/policy/compose.hpp>  // wrong
#include <terse/terse.hpp>  // wrong
  #  include <cuda_fp16.h>  // wrong
// #include <cuda_runtime.h> in a comment is harmless
