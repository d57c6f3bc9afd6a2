#define TERSE_TEST_POLICIES Q8_0, Q4_0
#include "cuda/attend_shapes.cuh"
