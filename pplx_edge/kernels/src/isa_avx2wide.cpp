#define PPLX_ANY_WEIGHTS
#include "lanes_avx2.h"
// lanes before tiles
#include "tiles_avx2.h"
// tiles before steps
#include "layer_steps.inc"

namespace pplx {
extern const Kernels kernels_avx2wide = kernels_named("avx2");
}
