// Exact int8 products in plain C++. Codes are int8 rows.
#pragma once
#include "kernels.h"

namespace {

constexpr int kCodeBytes = 1;
constexpr int kPanelsAtOnce = 1;

inline void store_codes(uint8_t* p, Ints a) { store_bytes(reinterpret_cast<int8_t*>(p), a); }

inline void multiply(const uint8_t* a, size_t row_bytes, int rows, const int8_t* panels, int n_panels, int depth,
                     const int32_t*, int32_t* c, size_t step, int16_t*, bool add = false) {
  for (int i = 0; i < rows; i++) {
    const int8_t* row = reinterpret_cast<const int8_t*>(a + i * row_bytes);
    for (int p = 0; p < n_panels; p++) {
      const int8_t* b = panels + static_cast<size_t>(p) * 16 * depth;
      int32_t sums[16] = {};
      for (int k = 0; k < depth; k += 4, b += 64)
        for (int n = 0; n < 16; n++)
          for (int j = 0; j < 4; j++) sums[n] += row[k + j] * b[4 * n + j];
      for (int n = 0; n < 16; n++) c[i * step + 16 * p + n] = sums[n] + (add ? c[i * step + 16 * p + n] : 0);
    }
  }
}

}  // namespace
