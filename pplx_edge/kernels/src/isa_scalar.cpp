#include "lanes_scalar.h"
// lanes before tiles
#include "tiles_scalar.h"
// tiles before steps
#include "layer_steps.inc"

namespace pplx {
extern const Kernels kernels_scalar = kernels_named("scalar");
}
