// What SIMDe 0.7 lacks, or computes with other rounding: fused products must be fused.
#pragma once
#include <cmath>
#include <cstring>

namespace simde_additions {

template <class V> V fused(V a, V b, V c, float sign) {
  float x[16], y[16], z[16];
  std::memcpy(x, &a, sizeof a);
  std::memcpy(y, &b, sizeof a);
  std::memcpy(z, &c, sizeof a);
  for (size_t j = 0; j < sizeof a / 4; j++) z[j] = std::fmaf(sign * x[j], y[j], z[j]);
  std::memcpy(&c, z, sizeof a);
  return c;
}

template <class I, class V> I rounded(V a) {
  float x[16];
  int32_t y[16];
  std::memcpy(x, &a, sizeof a);
  for (size_t j = 0; j < sizeof a / 4; j++)
    y[j] = x[j] >= -2147483648.0f && x[j] < 2147483648.0f ? static_cast<int32_t>(std::nearbyintf(x[j])) : INT32_MIN;
  I r;
  std::memcpy(&r, y, sizeof a);
  return r;
}

inline __m512 floats(__m512i a) {
  int32_t x[16];
  float y[16];
  std::memcpy(x, &a, 64);
  for (int j = 0; j < 16; j++) y[j] = static_cast<float>(x[j]);
  __m512 r;
  std::memcpy(&r, y, 64);
  return r;
}

inline __m512i shifted(__m512i a, int n) {
  int32_t x[16];
  std::memcpy(x, &a, 64);
  for (int j = 0; j < 16; j++) x[j] >>= n;
  std::memcpy(&a, x, 64);
  return a;
}

inline __m512i widened(__m128i a) {
  int8_t x[16];
  int32_t y[16];
  std::memcpy(x, &a, 16);
  for (int j = 0; j < 16; j++) y[j] = x[j];
  __m512i r;
  std::memcpy(&r, y, 64);
  return r;
}

inline __m128i narrowed(__m512i a) {
  int32_t x[16];
  int8_t y[16];
  std::memcpy(x, &a, 64);
  for (int j = 0; j < 16; j++) y[j] = static_cast<int8_t>(x[j]);
  __m128i r;
  std::memcpy(&r, y, 16);
  return r;
}

}  // namespace simde_additions

using __mmask16 = simde__mmask16;

#undef _mm256_fmadd_ps
#undef _mm256_fnmadd_ps
#undef _mm512_fmadd_ps
#undef _mm512_fnmadd_ps
#undef _mm256_cvtps_epi32
#undef _mm512_cvtps_epi32
#undef _mm512_cvtepi32_ps
#undef _mm512_srai_epi32
#undef _mm512_cvtepi8_epi32
#undef _mm512_cvtepi32_epi8
#define _mm256_fmadd_ps(a, b, c) simde_additions::fused(a, b, c, 1.0f)
#define _mm256_fnmadd_ps(a, b, c) simde_additions::fused(a, b, c, -1.0f)
#define _mm512_fmadd_ps(a, b, c) simde_additions::fused(a, b, c, 1.0f)
#define _mm512_fnmadd_ps(a, b, c) simde_additions::fused(a, b, c, -1.0f)
#define _mm256_cvtps_epi32(a) simde_additions::rounded<__m256i>(a)
#define _mm512_cvtps_epi32(a) simde_additions::rounded<__m512i>(a)
#define _mm512_cvtepi32_ps(a) simde_additions::floats(a)
#define _mm512_srai_epi32(a, n) simde_additions::shifted(a, n)
#define _mm512_cvtepi8_epi32(a) simde_additions::widened(a)
#define _mm512_cvtepi32_epi8(a) simde_additions::narrowed(a)
