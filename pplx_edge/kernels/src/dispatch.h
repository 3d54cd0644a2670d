// The instruction sets of this machine.
#pragma once
#include "kernels.h"

// PPLX_ISAS(X): the instruction sets that were compiled, best first. CMakeLists.txt lists them and writes this file. To add one, also
// write its file isa_NAME.cpp, and has_NAME in dispatch.cpp.
#include "instruction_sets.h"

namespace pplx {

const char* available_names();                 // best first, separated by commas
const char* compiled_names();
const Kernels* kernels_for(const char* name);  // null if unknown or not available; null or "" takes the best

}  // namespace pplx
