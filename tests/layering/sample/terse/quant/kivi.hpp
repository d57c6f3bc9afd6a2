#include <cub/cub.cuh>  // wrong
#include <terse/cache/cache.hpp>  // wrong
#include <terse/evict/window.hpp>  // wrong
#include <terse/layout/paged.hpp>
#include <terse/policy/compose.hpp>
#include <terse/quant/affine.hpp>
