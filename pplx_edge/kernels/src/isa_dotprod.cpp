#include "lanes_neon.h"
// lanes before tiles
#include "tiles_sdot.h"
// tiles before steps
#include "layer_steps.inc"

namespace pplx {
extern const Kernels kernels_dotprod = kernels_named("dotprod");
}
