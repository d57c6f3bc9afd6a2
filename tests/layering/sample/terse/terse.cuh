#include <terse/cuda/kernel.cuh>
#include <terse/terse.hpp>
