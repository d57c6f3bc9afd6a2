#define TERSE_EXAMPLE_KERNELS avx512_kernels
#define TERSE_EXAMPLE_EIGEN terse_eigen_avx512
#include "kernels.inc"
