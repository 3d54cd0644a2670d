// Exact int8 products with NEON's dot product. Codes are int8 rows.
#pragma once
#include "kernels.h"

namespace {

constexpr int kCodeBytes = 1;
constexpr int kPanelsAtOnce = 1;

inline void store_codes(uint8_t* p, Ints a) { store_bytes(reinterpret_cast<int8_t*>(p), a); }

// One k4 step of R rows: lane L of each row's 16 codes.
template <int R, int L>
inline __attribute__((always_inline)) void dot_step(int32x4_t (&acc)[R][4], const int8x16_t (&x)[R], const int8_t* b) {
  const int8x16_t w[4] = {vld1q_s8(b), vld1q_s8(b + 16), vld1q_s8(b + 32), vld1q_s8(b + 48)};
#pragma GCC unroll 4
  for (int i = 0; i < R; i++)
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) acc[i][j] = vdotq_laneq_s32(acc[i][j], w[j], x[i], L);
}

template <int R>
inline void tile(const uint8_t* a, size_t row_bytes, const int8_t* b, int depth, int32_t* c, size_t step, bool add) {
  int32x4_t acc[R][4];
#pragma GCC unroll 4
  for (int i = 0; i < R; i++)
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) acc[i][j] = add ? vld1q_s32(c + i * step + 4 * j) : vdupq_n_s32(0);
  for (int k = 0; k < depth; k += 16, b += 256) {
    int8x16_t x[R];
#pragma GCC unroll 4
    for (int i = 0; i < R; i++) x[i] = vld1q_s8(reinterpret_cast<const int8_t*>(a + i * row_bytes + k));
    dot_step<R, 0>(acc, x, b);
    dot_step<R, 1>(acc, x, b + 64);
    dot_step<R, 2>(acc, x, b + 128);
    dot_step<R, 3>(acc, x, b + 192);
  }
#pragma GCC unroll 4
  for (int i = 0; i < R; i++)
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) vst1q_s32(c + i * step + 4 * j, acc[i][j]);
}

using Tile = void (*)(const uint8_t*, size_t, const int8_t*, int, int32_t*, size_t, bool);
constexpr int kMostRows = 4;
constexpr Tile kTiles[kMostRows] = {tile<1>, tile<2>, tile<3>, tile<4>};

inline void multiply(const uint8_t* a, size_t row_bytes, int rows, const int8_t* panels, int n_panels, int depth,
                     const int32_t*, int32_t* c, size_t step, int16_t*, bool add = false) {
  for (int p = 0; p < n_panels; p++)
    for (int i = 0; i < rows; i += kMostRows) {
      const int n = rows - i < kMostRows ? rows - i : kMostRows;
      kTiles[n - 1](a + i * row_bytes, row_bytes, panels + static_cast<size_t>(p) * 16 * depth, depth, c + i * step + 16 * p, step, add);
    }
}

}  // namespace
