#include <terse/core/span.hpp>
#include <terse/layout/paged.hpp>  // wrong
