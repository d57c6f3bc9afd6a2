#define TERSE_EXAMPLE_KERNELS baseline_kernels
#define TERSE_EXAMPLE_EIGEN terse_eigen_baseline
#include "kernels.inc"
