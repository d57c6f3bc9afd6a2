#include <terse/cpu/attend.hpp>  // wrong
#include <terse/quant/kivi.hpp>
