#include <Eigen/Core>  // wrong
#include "terse/quant/kivi.hpp"  // wrong
