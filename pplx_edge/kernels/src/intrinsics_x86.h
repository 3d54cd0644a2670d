// The intrinsics of x86: the compiler's, or SIMDe's in tests on machines without these instructions.
#pragma once
#ifdef PPLX_EMULATE
#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx512.h>
#include <simde/x86/fma.h>

#include "../tests/simde_additions.h"
#else
#include <immintrin.h>
#endif
