#include <unsupported/Eigen/MatrixFunctions>  // wrong
#include <terse/cache/cache.hpp>
