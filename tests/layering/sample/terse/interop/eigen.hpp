#include <Eigen/Core>
#include <terse/cache/cache.hpp>
