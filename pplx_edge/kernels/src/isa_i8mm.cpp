#include "lanes_neon.h"
// lanes before tiles
#include "tiles_smmla.h"
// tiles before steps
#include "layer_steps.inc"

namespace pplx {
extern const Kernels kernels_i8mm = kernels_named("i8mm");
}
