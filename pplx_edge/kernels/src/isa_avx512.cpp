#include "lanes_avx512.h"
// lanes before tiles
#include "tiles_vnni512.h"
// tiles before steps
#include "layer_steps.inc"

namespace pplx {
extern const Kernels kernels_avx512 = kernels_named("avx512");
}
