#include "../core/span.hpp"
#include "../policy/compose.hpp"  // wrong
#include "block_table.hpp"
