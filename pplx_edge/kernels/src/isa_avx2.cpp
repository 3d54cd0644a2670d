#include "lanes_avx2.h"
// lanes before tiles
#include "tiles_avx2.h"
// tiles before steps
#include "layer_steps.inc"

namespace pplx {
extern const Kernels kernels_avx2wide;
extern const Kernels kernels_avx2 = kernels_named("avx2", &kernels_avx2wide);
}
