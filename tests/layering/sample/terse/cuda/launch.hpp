#include <cuda_runtime.h>  // wrong
#include <terse/cuda/kernel.cuh>  // wrong
