#define TERSE_EXAMPLE_KERNELS avx2_kernels
#define TERSE_EXAMPLE_EIGEN terse_eigen_avx2
#include "kernels.inc"
