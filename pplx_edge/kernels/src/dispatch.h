// The instruction sets of this machine.
#pragma once
#include "kernels.h"

// Best first. To add one, write its file isa_NAME.cpp and has_NAME in dispatch.cpp, and list it here and in CMakeLists.txt.
#if defined(__x86_64__)
#define PPLX_ISAS(X) X(amx) X(avx512) X(avxvnni) X(avx2) X(scalar)
#elif defined(__aarch64__)
#define PPLX_ISAS(X) X(i8mm) X(dotprod) X(scalar)
#else
#define PPLX_ISAS(X) X(scalar)
#endif

namespace pplx {

const char* available_names();                 // best first, separated by commas
const char* compiled_names();
const Kernels* kernels_for(const char* name);  // null if unknown or not available; null or "" takes the best
const Kernels* kernels_for_any_weights(const Kernels&);  // the same instruction set without a condition on weights

}  // namespace pplx
