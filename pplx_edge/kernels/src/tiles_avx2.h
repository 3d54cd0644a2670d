// Exact int8 products with AVX2, in two ways.
//
// `pairs`: codes are unsigned bytes, code + 128, as in tiles_vnni512.h. vpmaddubsw adds the products of two neighbors in 16 bits; that
// is exact if the weights of two neighbors never add up to more than 128, as those of our converters (weights.rounding).
//
// `wide`: for any weights. Codes are int16: of four neighbors k, the first and third come first, then the second and fourth, because
// shifting the bytes of V4x16 weights to int16 leaves pairs of these. A panel is widened once for several strips of rows.
#pragma once
#include "kernels.h"

namespace {

constexpr int kMostRows = 5;
constexpr int kPanelsAtOnce = 1;

inline __m256i broadcast(const void* p) {
  int v;
  __builtin_memcpy(&v, p, 4);
  return _mm256_set1_epi32(v);
}
inline __m256i bytes_at(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }

namespace wide {

inline void store_codes(uint8_t* p, Ints a) {
  const __m256i order = _mm256_setr_epi8(0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15, 0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12,
                                         13, 10, 11, 14, 15);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm256_shuffle_epi8(shorts(a), order));
}

inline __m256i even(__m256i b) { return _mm256_srai_epi16(_mm256_slli_epi16(b, 8), 8); }
inline __m256i odd(__m256i b) { return _mm256_srai_epi16(b, 8); }

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
    const __m256i x = broadcast(a + i * row);
    acc[i][0] = _mm256_add_epi32(acc[i][0], _mm256_madd_epi16(x, left));
    acc[i][1] = _mm256_add_epi32(acc[i][1], _mm256_madd_epi16(x, right));
  }
}

// c[R][16]; the panel is int16 if it was widened, else int8.
template <int R, bool Widened>
inline void tile(const int16_t* a, size_t row, const void* panel, int depth, int32_t* c, size_t step, bool add) {
  __m256i acc[R][2];
#pragma GCC unroll 5
  for (int i = 0; i < R; i++) {
    acc[i][0] = add ? bytes_at(c + i * step) : _mm256_setzero_si256();
    acc[i][1] = add ? bytes_at(c + i * step + 8) : _mm256_setzero_si256();
  }
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

using Tile = void (*)(const int16_t*, size_t, const void*, int, int32_t*, size_t, bool);
constexpr Tile kWidened[kMostRows] = {tile<1, true>, tile<2, true>, tile<3, true>, tile<4, true>, tile<5, true>};
// Widening in registers leaves too few of them for more rows.
constexpr int kMostDirectRows = 3;
constexpr Tile kDirect[kMostDirectRows] = {tile<1, false>, tile<2, false>, tile<3, false>};

inline void multiply(const uint8_t* a, size_t row_bytes, int rows, const int8_t* panels, int n_panels, int depth,
                     const int32_t*, int32_t* c, size_t step, int16_t* widened, bool add = false) {
  const int strips = (rows + kMostRows - 1) / kMostRows;
  const int16_t* codes = reinterpret_cast<const int16_t*>(a);
  const size_t row = row_bytes / 2;
  for (int p = 0; p < n_panels; p++) {
    const int8_t* panel = panels + static_cast<size_t>(p) * 16 * depth;
    if (rows <= kMostDirectRows) {
      kDirect[rows - 1](codes, row, panel, depth, c + 16 * p, step, add);
      continue;
    }
    widen(panel, depth, widened);
    for (int s = 0; s < strips; s++) {
      const int from = rows * s / strips, n = rows * (s + 1) / strips - from;
      kWidened[n - 1](codes + from * row, row, widened, depth, c + from * step + 16 * p, step, add);
    }
  }
}

}  // namespace wide

namespace pairs {

inline void store_codes(uint8_t* p, Ints a) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm_xor_si128(bytes(a), _mm_set1_epi8(-128)));
}

template <int R>
inline void tile(const uint8_t* a, size_t row_bytes, const int8_t* b, int depth, const int32_t* sums, int32_t* c, size_t step, bool add) {
  const __m256i ones = _mm256_set1_epi16(1);
  __m256i acc[R][2];
#pragma GCC unroll 5
  for (int i = 0; i < R; i++) {
    acc[i][0] = add ? bytes_at(c + i * step) : _mm256_setzero_si256();
    acc[i][1] = add ? bytes_at(c + i * step + 8) : _mm256_setzero_si256();
  }
  for (int k = 0; k < depth; k += 4, b += 64) {
    const __m256i left = bytes_at(b), right = bytes_at(b + 32);
#pragma GCC unroll 5
    for (int i = 0; i < R; i++) {
      const __m256i x = broadcast(a + i * row_bytes + k);
      acc[i][0] = _mm256_add_epi32(acc[i][0], _mm256_madd_epi16(_mm256_maddubs_epi16(x, left), ones));
      acc[i][1] = _mm256_add_epi32(acc[i][1], _mm256_madd_epi16(_mm256_maddubs_epi16(x, right), ones));
    }
  }
  const __m256i left = add ? _mm256_setzero_si256() : _mm256_slli_epi32(bytes_at(sums), 7);
  const __m256i right = add ? _mm256_setzero_si256() : _mm256_slli_epi32(bytes_at(sums + 8), 7);
#pragma GCC unroll 5
  for (int i = 0; i < R; i++) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(c + i * step), _mm256_sub_epi32(acc[i][0], left));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(c + i * step + 8), _mm256_sub_epi32(acc[i][1], right));
  }
}

using Tile = void (*)(const uint8_t*, size_t, const int8_t*, int, const int32_t*, int32_t*, size_t, bool);
constexpr Tile kTiles[kMostRows] = {tile<1>, tile<2>, tile<3>, tile<4>, tile<5>};

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

}  // namespace pairs

// The keys and values of attention are any codes, and its weights have 14 bits.
#define PPLX_WIDE_ATTENTION
constexpr int kAttentionBytes = 2;
constexpr bool kWideCodes = true;
inline void store_attention_codes(uint8_t* p, Ints a) { wide::store_codes(p, a); }
inline void multiply_attention(const uint8_t* a, size_t row_bytes, int rows, const int8_t* panels, int n_panels, int depth,
                               const int32_t* sums, int32_t* c, size_t step, int16_t* panel) {
  wide::multiply(a, row_bytes, rows, panels, n_panels, depth, sums, c, step, panel);
}

#ifdef PPLX_ANY_WEIGHTS
constexpr int kCodeBytes = 2;
using wide::multiply;
using wide::store_codes;
#else
constexpr int kCodeBytes = 1;
using pairs::multiply;
using pairs::store_codes;
#endif

}  // namespace
