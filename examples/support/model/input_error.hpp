#pragma once

#include "../report/input_error.hpp"  // one error for everything that a user gave
