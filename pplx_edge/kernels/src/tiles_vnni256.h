// Exact int8 products with AVX-VNNI, as tiles_vnni512.h with registers of 256 bits.
#pragma once
#include "kernels.h"

#ifdef PPLX_EMULATE
// The 256-bit vpdpbusd of plain arithmetic, for processors and SIMDe versions without it.
inline __m256i pplx_dpbusd(__m256i sum, __m256i a, __m256i b) {
  alignas(32) uint8_t x[32];
  alignas(32) int8_t y[32];
  alignas(32) int32_t s[8];
  _mm256_store_si256(reinterpret_cast<__m256i*>(x), a);
  _mm256_store_si256(reinterpret_cast<__m256i*>(y), b);
  _mm256_store_si256(reinterpret_cast<__m256i*>(s), sum);
  for (int j = 0; j < 32; j++) s[j / 4] += x[j] * y[j];
  return _mm256_load_si256(reinterpret_cast<const __m256i*>(s));
}
#else
#define pplx_dpbusd _mm256_dpbusd_avx_epi32
#endif

namespace {

constexpr int kCodeBytes = 1;
constexpr int kPanelsAtOnce = 1;

inline void store_codes(uint8_t* p, Ints a) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm_xor_si128(bytes(a), _mm_set1_epi8(-128)));
}

inline int four_codes(const uint8_t* p) {
  int v;
  __builtin_memcpy(&v, p, 4);
  return v;
}
inline __m256i ints_at(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }

template <int R>
inline void tile(const uint8_t* a, size_t row_bytes, const int8_t* b, int depth, const int32_t* sums, int32_t* c, size_t step, bool add) {
  __m256i acc[R][2];
#pragma GCC unroll 6
  for (int i = 0; i < R; i++) {
    acc[i][0] = add ? ints_at(c + i * step) : _mm256_setzero_si256();
    acc[i][1] = add ? ints_at(c + i * step + 8) : _mm256_setzero_si256();
  }
  for (int k = 0; k < depth; k += 4, b += 64) {
    const __m256i left = ints_at(b), right = ints_at(b + 32);
#pragma GCC unroll 6
    for (int i = 0; i < R; i++) {
      const __m256i x = _mm256_set1_epi32(four_codes(a + i * row_bytes + k));
      acc[i][0] = pplx_dpbusd(acc[i][0], x, left);
      acc[i][1] = pplx_dpbusd(acc[i][1], x, right);
    }
  }
  const __m256i left = add ? _mm256_setzero_si256() : _mm256_slli_epi32(ints_at(sums), 7);
  const __m256i right = add ? _mm256_setzero_si256() : _mm256_slli_epi32(ints_at(sums + 8), 7);
#pragma GCC unroll 6
  for (int i = 0; i < R; i++) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(c + i * step), _mm256_sub_epi32(acc[i][0], left));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(c + i * step + 8), _mm256_sub_epi32(acc[i][1], right));
  }
}

using Tile = void (*)(const uint8_t*, size_t, const int8_t*, int, const int32_t*, int32_t*, size_t, bool);
constexpr int kMostRows = 6;
constexpr Tile kTiles[kMostRows] = {tile<1>, tile<2>, tile<3>, tile<4>, tile<5>, tile<6>};

inline void multiply(const uint8_t* a, size_t row_bytes, int rows, const int8_t* panels, int n_panels, int depth,
                     const int32_t* sums, int32_t* c, size_t step, int16_t*, bool add = false) {
  const int strips = (rows + kMostRows - 1) / kMostRows;
  for (int p = 0; p < n_panels; p++)
    for (int s = 0; s < strips; s++) {
      const int from = rows * s / strips, n = rows * (s + 1) / strips - from;
      kTiles[n - 1](a + from * row_bytes, row_bytes, panels + static_cast<size_t>(p) * 16 * depth, depth, sums + 16 * p,
                    c + from * step + 16 * p, step, add);
    }
}

}  // namespace
