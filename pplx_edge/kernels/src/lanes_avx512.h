// 16 virtual lanes in one register of AVX-512.
#pragma once
#include "intrinsics_x86.h"

namespace {

using Floats = __m512;
using Ints = __m512i;

inline Floats load(const float* p) { return _mm512_loadu_ps(p); }
inline void store(float* p, Floats a) { _mm512_storeu_ps(p, a); }
inline Floats set(float x) { return _mm512_set1_ps(x); }
inline Floats add(Floats a, Floats b) { return _mm512_add_ps(a, b); }
inline Floats sub(Floats a, Floats b) { return _mm512_sub_ps(a, b); }
inline Floats mul(Floats a, Floats b) { return _mm512_mul_ps(a, b); }
inline Floats div(Floats a, Floats b) { return _mm512_div_ps(a, b); }
inline Floats fma(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
inline Floats neg_fma(Floats a, Floats b, Floats c) { return _mm512_fnmadd_ps(a, b, c); }
inline Floats max(Floats a, Floats b) { return _mm512_max_ps(a, b); }
inline Floats min(Floats a, Floats b) { return _mm512_min_ps(a, b); }
inline Ints as_ints(Floats a) { return _mm512_castps_si512(a); }
inline Floats as_floats(Ints a) { return _mm512_castsi512_ps(a); }
inline Ints round_ints(Floats a) { return _mm512_cvtps_epi32(a); }
inline Floats to_floats(Ints a) { return _mm512_cvtepi32_ps(a); }
inline Ints load(const int32_t* p) { return _mm512_loadu_si512(p); }
inline void store(int32_t* p, Ints a) { _mm512_storeu_si512(p, a); }
inline Ints set(int32_t x) { return _mm512_set1_epi32(x); }
inline Ints add(Ints a, Ints b) { return _mm512_add_epi32(a, b); }
inline Ints max(Ints a, Ints b) { return _mm512_max_epi32(a, b); }
inline Ints both(Ints a, Ints b) { return _mm512_and_si512(a, b); }
template <int N> inline Ints shift_left(Ints a) { return _mm512_slli_epi32(a, N); }
template <int N> inline Ints shift_right(Ints a) { return _mm512_srai_epi32(a, N); }
inline Ints load_bytes(const int8_t* p) { return _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }
inline void store_bytes(int8_t* p, Ints a) { _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(a)); }
inline Ints load_repeated(const int8_t* p) {
  const __m512i order = _mm512_setr_epi32(0, 0x01010101, 0x02020202, 0x03030303, 0x04040404, 0x05050505, 0x06060606, 0x07070707,
                                          0x08080808, 0x09090909, 0x0a0a0a0a, 0x0b0b0b0b, 0x0c0c0c0c, 0x0d0d0d0d, 0x0e0e0e0e, 0x0f0f0f0f);
  return _mm512_shuffle_epi8(_mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))), order);
}
inline Ints mul_halves(Ints a, Ints b) { return _mm512_mullo_epi16(a, b); }
inline Ints sub_bytes(Ints a, Ints b) { return _mm512_sub_epi8(a, b); }
inline Floats first(int n, Floats a, Floats b) { return _mm512_mask_blend_ps(static_cast<__mmask16>((1u << n) - 1), b, a); }

inline float sum(Floats a) {
  __m256 h = _mm256_add_ps(_mm512_castps512_ps256(a), _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(a), 1)));
  __m128 q = _mm_add_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
  q = _mm_add_ps(q, _mm_movehl_ps(q, q));
  return _mm_cvtss_f32(_mm_add_ss(q, _mm_shuffle_ps(q, q, 1)));
}
inline float largest(Floats a) {
  __m256 h = _mm256_max_ps(_mm512_castps512_ps256(a), _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(a), 1)));
  __m128 q = _mm_max_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
  q = _mm_max_ps(q, _mm_movehl_ps(q, q));
  return _mm_cvtss_f32(_mm_max_ss(q, _mm_shuffle_ps(q, q, 1)));
}
inline __m128i quarter(Ints a, bool maximum) {
  __m256i x = _mm512_castsi512_si256(a), y = _mm512_extracti64x4_epi64(a, 1);
  __m256i h = maximum ? _mm256_max_epi32(x, y) : _mm256_add_epi32(x, y);
  __m128i u = _mm256_castsi256_si128(h), v = _mm256_extracti128_si256(h, 1);
  __m128i q = maximum ? _mm_max_epi32(u, v) : _mm_add_epi32(u, v);
  __m128i s = _mm_shuffle_epi32(q, 0x4e);
  q = maximum ? _mm_max_epi32(q, s) : _mm_add_epi32(q, s);
  s = _mm_shuffle_epi32(q, 0xb1);
  return maximum ? _mm_max_epi32(q, s) : _mm_add_epi32(q, s);
}
inline int32_t largest(Ints a) { return _mm_cvtsi128_si32(quarter(a, true)); }
inline int32_t sum(Ints a) { return _mm_cvtsi128_si32(quarter(a, false)); }

}  // namespace
