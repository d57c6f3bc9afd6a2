#pragma once  // wrong
