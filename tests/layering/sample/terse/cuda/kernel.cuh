#include <cub/cub.cuh>
#include <cuda_fp16.h>
#include <terse/cpu/attend.hpp>  // wrong
