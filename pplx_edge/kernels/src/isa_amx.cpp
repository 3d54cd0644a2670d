#include "lanes_avx512.h"
// lanes before tiles
#include "tiles_amx.h"
// tiles before steps
#include "layer_steps.inc"

namespace pplx {
extern const Kernels kernels_amx = kernels_named("amx");
}
