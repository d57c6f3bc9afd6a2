#define TERSE_TEST_POLICIES AlignedKV, AlignedInt8
#include "cuda/attend_shapes.cuh"
