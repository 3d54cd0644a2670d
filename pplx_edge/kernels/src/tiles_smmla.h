// Exact int8 products with NEON's matrix product (i8mm): two rows by two columns of eight k. Codes are int8 rows.
#pragma once
#include "kernels.h"

namespace {

constexpr int kCodeBytes = 1;
constexpr int kPanelsAtOnce = 1;

inline void store_codes(uint8_t* p, Ints a) { store_bytes(reinterpret_cast<int8_t*>(p), a); }

inline int8x16_t two_rows(const uint8_t* a, size_t row_bytes) {
  return vcombine_s8(vld1_s8(reinterpret_cast<const int8_t*>(a)), vld1_s8(reinterpret_cast<const int8_t*>(a + row_bytes)));
}

inline int32x4_t two_rows_of_sums(const int32_t* c, size_t step) { return vcombine_s32(vld1_s32(c), vld1_s32(c + step)); }

// c of G pairs of rows and 16 columns. Two neighboring steps of V4x16 are zipped to columns of eight k.
template <int G>
inline void tile(const uint8_t* a, size_t row_bytes, const int8_t* b, int depth, int32_t* c, size_t step, int rows, bool add) {
  int32x4_t acc[G][8];
#pragma GCC unroll 2
  for (int g = 0; g < G; g++)
#pragma GCC unroll 8
    for (int j = 0; j < 8; j++) acc[g][j] = add ? two_rows_of_sums(c + 2 * g * step + 2 * j, 2 * g + 1 < rows ? step : 0) : vdupq_n_s32(0);
  for (int k = 0; k < depth; k += 8, b += 128) {
    int8x16_t x[G];
#pragma GCC unroll 2
    for (int g = 0; g < G; g++) x[g] = two_rows(a + 2 * g * row_bytes + k, row_bytes);
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) {
      const int32x4_t low = vreinterpretq_s32_s8(vld1q_s8(b + 16 * j)), high = vreinterpretq_s32_s8(vld1q_s8(b + 64 + 16 * j));
      const int8x16_t left = vreinterpretq_s8_s32(vzip1q_s32(low, high)), right = vreinterpretq_s8_s32(vzip2q_s32(low, high));
#pragma GCC unroll 2
      for (int g = 0; g < G; g++) {
        acc[g][2 * j] = vmmlaq_s32(acc[g][2 * j], x[g], left);
        acc[g][2 * j + 1] = vmmlaq_s32(acc[g][2 * j + 1], x[g], right);
      }
    }
  }
  for (int g = 0; g < G; g++)
    for (int j = 0; j < 8; j++) {  // [two rows][two columns]
      vst1_s32(c + 2 * g * step + 2 * j, vget_low_s32(acc[g][j]));
      if (2 * g + 1 < rows) vst1_s32(c + (2 * g + 1) * step + 2 * j, vget_high_s32(acc[g][j]));
    }
}

// An odd last row is multiplied together with the row after it, which buffers have.
inline void multiply(const uint8_t* a, size_t row_bytes, int rows, const int8_t* panels, int n_panels, int depth,
                     const int32_t*, int32_t* c, size_t step, int16_t*, bool add = false) {
  for (int p = 0; p < n_panels; p++)
    for (int i = 0; i < rows; i += 4)
      (rows - i > 2 ? tile<2> : tile<1>)(a + i * row_bytes, row_bytes, panels + static_cast<size_t>(p) * 16 * depth, depth,
                                         c + i * step + 16 * p, step, rows - i, add);
}

}  // namespace
