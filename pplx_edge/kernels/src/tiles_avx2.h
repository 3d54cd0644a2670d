// Exact int8 products with AVX2. Codes are int16: of four neighbors k, the first and third come first, then the second and
// fourth, because shifting the bytes of V4x16 weights to int16 leaves pairs of these. vpmaddubsw would be shorter but
// saturates. A panel is widened once for several strips of rows.
#pragma once
#include "kernels.h"

namespace {

constexpr int kCodeBytes = 2;
constexpr bool kWideCodes = true;

inline void store_codes(uint8_t* p, Ints a) {
  const __m256i order = _mm256_setr_epi8(0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15, 0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12,
                                         13, 10, 11, 14, 15);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm256_shuffle_epi8(shorts(a), order));
}

inline __m256i pair(const int16_t* p) {
  int v;
  __builtin_memcpy(&v, p, 4);
  return _mm256_set1_epi32(v);
}
inline __m256i even(__m256i b) { return _mm256_srai_epi16(_mm256_slli_epi16(b, 8), 8); }
inline __m256i odd(__m256i b) { return _mm256_srai_epi16(b, 8); }
inline __m256i bytes_at(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }

inline void widen(const int8_t* b, int depth, int16_t* out) {
  for (int k = 0; k < depth; k += 4, b += 64, out += 64) {
    const __m256i left = bytes_at(b), right = bytes_at(b + 32);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), even(left));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + 16), even(right));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + 32), odd(left));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + 48), odd(right));
  }
}

template <int R>
inline __attribute__((always_inline)) void step_pair(__m256i (&acc)[R][2], const int16_t* a, size_t row, __m256i left, __m256i right) {
#pragma GCC unroll 5
  for (int i = 0; i < R; i++) {
    const __m256i x = pair(a + i * row);
    acc[i][0] = _mm256_add_epi32(acc[i][0], _mm256_madd_epi16(x, left));
    acc[i][1] = _mm256_add_epi32(acc[i][1], _mm256_madd_epi16(x, right));
  }
}

// c[R][16]; the panel is int16 if it was widened, else int8.
template <int R, bool Widened>
inline void tile(const int16_t* a, size_t row, const void* panel, int depth, int32_t* c, size_t step) {
  __m256i acc[R][2];
#pragma GCC unroll 5
  for (int i = 0; i < R; i++) acc[i][0] = acc[i][1] = _mm256_setzero_si256();
  if constexpr (Widened) {
    const int16_t* b = static_cast<const int16_t*>(panel);
    for (int k = 0; k < depth; k += 2, b += 32) step_pair<R>(acc, a + k, row, bytes_at(b), bytes_at(b + 16));
  } else {
    const int8_t* b = static_cast<const int8_t*>(panel);
    for (int k = 0; k < depth; k += 4, b += 64) {
      const __m256i left = bytes_at(b), right = bytes_at(b + 32);
      step_pair<R>(acc, a + k, row, even(left), even(right));
      step_pair<R>(acc, a + k + 2, row, odd(left), odd(right));
    }
  }
#pragma GCC unroll 5
  for (int i = 0; i < R; i++) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(c + i * step), acc[i][0]);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(c + i * step + 8), acc[i][1]);
  }
}

using Tile = void (*)(const int16_t*, size_t, const void*, int, int32_t*, size_t);
constexpr int kMostRows = 5;
constexpr Tile kTiles[2][kMostRows] = {{tile<1, false>, tile<2, false>, tile<3, false>, tile<4, false>, tile<5, false>},
                                       {tile<1, true>, tile<2, true>, tile<3, true>, tile<4, true>, tile<5, true>}};

inline void multiply(const uint8_t* a, size_t row_bytes, int rows, const int8_t* panels, int n_panels, int depth,
                     const int32_t*, int32_t* c, size_t step, int16_t* wide) {
  const int strips = (rows + kMostRows - 1) / kMostRows;
  for (int p = 0; p < n_panels; p++) {
    const int8_t* panel = panels + static_cast<size_t>(p) * 16 * depth;
    if (strips > 1) widen(panel, depth, wide);
    for (int s = 0; s < strips; s++) {
      const int from = rows * s / strips, n = rows * (s + 1) / strips - from;
      kTiles[strips > 1][n - 1](reinterpret_cast<const int16_t*>(a + from * row_bytes), row_bytes / 2,
                                strips > 1 ? static_cast<const void*>(wide) : panel, depth, c + from * step + 16 * p, step);
    }
  }
}

}  // namespace
