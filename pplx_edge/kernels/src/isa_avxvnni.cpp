#include "lanes_avx2.h"
// lanes before tiles
#include "tiles_vnni256.h"
// tiles before steps
#include "layer_steps.inc"

namespace pplx {
extern const Kernels kernels_avxvnni = kernels_named("avxvnni");
}
