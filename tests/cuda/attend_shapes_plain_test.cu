#define TERSE_TEST_POLICIES Identity, Fp8
#include "cuda/attend_shapes.cuh"
