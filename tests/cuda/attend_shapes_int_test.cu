#define TERSE_TEST_POLICIES Int8, Int4Rotated
#include "cuda/attend_shapes.cuh"
