// Weights of 4 bits to V4x16, once for all instruction sets: included after lanes.
#pragma once
#include "kernels.h"

namespace {

using namespace pplx;

// A weight of 4 bits is (code - zero point) * multiplier of its group, which is an int8 code. Codes and zero points are 0…15 and
// multipliers are at most 15, so products of two neighboring bytes do not reach into each other.
void unpack(const int8_t* panel, int depth, int from, int n, int8_t* out) {
  const int8_t *groups = panel + from / kGroup * kLanes, *codes = panel + depth / kGroup * kLanes + from * (kLanes / 2);
  const Ints low = set(0x0f0f0f0f);
  for (int k = 0; k < n; k += kGroup, groups += kLanes) {
    const Ints group = load_repeated(groups), multiplier = both(group, set(0x000f000f));
    const Ints zero = mul_halves(both(shift_right<4>(group), low), multiplier);
#pragma GCC unroll 4
    for (int i = 0; i < kGroup; i += 8, codes += 64, out += 128) {  // 64 bytes: the codes of four k, and of the next four k
      const Ints two = load(reinterpret_cast<const int32_t*>(codes));
      store(reinterpret_cast<int32_t*>(out), sub_bytes(mul_halves(both(two, low), multiplier), zero));
      store(reinterpret_cast<int32_t*>(out + 64), sub_bytes(mul_halves(both(shift_right<4>(two), low), multiplier), zero));
    }
  }
}

}  // namespace
