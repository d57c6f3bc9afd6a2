#define TERSE_TEST_POLICIES Kivi2, Kivi4
#include "cuda/attend_shapes.cuh"
