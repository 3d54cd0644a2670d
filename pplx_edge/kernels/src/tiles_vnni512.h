// Exact int8 products with AVX512-VNNI. Codes are rows of unsigned bytes, code + 128; what 128 adds, 128 * the sum of a
// column's weights, is subtracted at the end.
#pragma once
#include "kernels.h"

namespace {

constexpr int kCodeBytes = 1;
constexpr int kPanelsAtOnce = 4;

inline void store_codes(uint8_t* p, Ints a) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm_xor_si128(_mm512_cvtepi32_epi8(a), _mm_set1_epi8(-128)));
}

inline int four_codes(const uint8_t* p) {
  int v;
  __builtin_memcpy(&v, p, 4);
  return v;
}

// c[R][16 P] of R rows and P panels.
template <int R, int P>
inline void tile(const uint8_t* a, size_t row_bytes, const int8_t* b, int depth, const int32_t* sums, int32_t* c, size_t step, bool add) {
  __m512i acc[R][P];
#pragma GCC unroll 12
  for (int i = 0; i < R; i++)
#pragma GCC unroll 4
    for (int p = 0; p < P; p++) acc[i][p] = add ? _mm512_loadu_si512(c + i * step + 16 * p) : _mm512_setzero_si512();
  const size_t panel = static_cast<size_t>(depth) * 16;
  for (int k = 0; k < depth; k += 4) {
    __m512i w[P];
#pragma GCC unroll 4
    for (int p = 0; p < P; p++) w[p] = _mm512_loadu_si512(b + p * panel + 16 * k);
#pragma GCC unroll 12
    for (int i = 0; i < R; i++) {
      const __m512i x = _mm512_set1_epi32(four_codes(a + i * row_bytes + k));
#pragma GCC unroll 4
      for (int p = 0; p < P; p++) acc[i][p] = _mm512_dpbusd_epi32(acc[i][p], x, w[p]);
    }
  }
#pragma GCC unroll 4
  for (int p = 0; p < P; p++) {
    const __m512i extra = add ? _mm512_setzero_si512() : _mm512_slli_epi32(_mm512_loadu_si512(sums + 16 * p), 7);
#pragma GCC unroll 12
    for (int i = 0; i < R; i++) _mm512_storeu_si512(c + i * step + 16 * p, _mm512_sub_epi32(acc[i][p], extra));
  }
}

using Tile = void (*)(const uint8_t*, size_t, const int8_t*, int, const int32_t*, int32_t*, size_t, bool);
constexpr int kMostRows = 12;
constexpr Tile kTiles[kMostRows] = {tile<1, 4>, tile<2, 4>, tile<3, 4>, tile<4, 4>, tile<5, 4>, tile<6, 4>,
                                    tile<7, 2>, tile<8, 2>, tile<9, 2>, tile<10, 2>, tile<11, 2>, tile<12, 2>};

// The number of panels is a multiple of 4. Rows are divided into strips of nearly equal height.
inline void multiply(const uint8_t* a, size_t row_bytes, int rows, const int8_t* panels, int n_panels, int depth,
                     const int32_t* sums, int32_t* c, size_t step, int16_t*, bool add = false) {
  const int strips = (rows + kMostRows - 1) / kMostRows;
  for (int p = 0; p < n_panels; p += 4)
    for (int s = 0; s < strips; s++) {
      const int from = rows * s / strips, n = rows * (s + 1) / strips - from, width = n <= 6 ? 4 : 2;
      for (int q = p; q < p + 4; q += width)
        kTiles[n - 1](a + from * row_bytes, row_bytes, panels + static_cast<size_t>(q) * 16 * depth, depth, sums + 16 * q,
                      c + from * step + 16 * q, step, add);
    }
}

}  // namespace
