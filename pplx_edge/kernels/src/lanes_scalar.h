// 16 virtual lanes in plain C++: the definition of the arithmetic, with which the other lanes are compared.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

namespace {

struct Floats { float v[16]; };
struct Ints { int32_t v[16]; };

#define EACH for (int j = 0; j < 16; j++)

inline Floats load(const float* p) { Floats r; EACH r.v[j] = p[j]; return r; }
inline void store(float* p, Floats a) { EACH p[j] = a.v[j]; }
inline Floats set(float x) { Floats r; EACH r.v[j] = x; return r; }
inline Floats add(Floats a, Floats b) { EACH a.v[j] += b.v[j]; return a; }
inline Floats sub(Floats a, Floats b) { EACH a.v[j] -= b.v[j]; return a; }
inline Floats mul(Floats a, Floats b) { EACH a.v[j] *= b.v[j]; return a; }
inline Floats div(Floats a, Floats b) { EACH a.v[j] /= b.v[j]; return a; }
inline Floats fma(Floats a, Floats b, Floats c) { EACH c.v[j] = __builtin_fmaf(a.v[j], b.v[j], c.v[j]); return c; }
inline Floats neg_fma(Floats a, Floats b, Floats c) { EACH c.v[j] = __builtin_fmaf(-a.v[j], b.v[j], c.v[j]); return c; }  // c - a * b
inline Floats max(Floats a, Floats b) { EACH a.v[j] = a.v[j] > b.v[j] ? a.v[j] : b.v[j]; return a; }
inline Floats min(Floats a, Floats b) { EACH a.v[j] = a.v[j] < b.v[j] ? a.v[j] : b.v[j]; return a; }
inline Ints as_ints(Floats a) { Ints r; std::memcpy(&r, &a, 64); return r; }
inline Floats as_floats(Ints a) { Floats r; std::memcpy(&r, &a, 64); return r; }
// To the nearest integer, ties to even. The caller keeps values within int32; what is not a number becomes any integer.
inline Ints round_ints(Floats a) {
  Ints r;
  EACH r.v[j] = a.v[j] >= -2e9f && a.v[j] <= 2e9f ? static_cast<int32_t>(__builtin_rintf(a.v[j])) : INT32_MIN;
  return r;
}
inline Floats to_floats(Ints a) { Floats r; EACH r.v[j] = static_cast<float>(a.v[j]); return r; }
inline Ints load(const int32_t* p) { Ints r; std::memcpy(&r, p, 64); return r; }
inline void store(int32_t* p, Ints a) { std::memcpy(p, &a, 64); }
inline Ints set(int32_t x) { Ints r; EACH r.v[j] = x; return r; }
inline Ints add(Ints a, Ints b) { EACH a.v[j] += b.v[j]; return a; }
inline Ints max(Ints a, Ints b) { EACH a.v[j] = a.v[j] > b.v[j] ? a.v[j] : b.v[j]; return a; }
inline Ints both(Ints a, Ints b) { EACH a.v[j] &= b.v[j]; return a; }
template <int N> inline Ints shift_left(Ints a) { EACH a.v[j] = static_cast<int32_t>(static_cast<uint32_t>(a.v[j]) << N); return a; }
template <int N> inline Ints shift_right(Ints a) { EACH a.v[j] >>= N; return a; }
inline Ints load_bytes(const int8_t* p) { Ints r; EACH r.v[j] = p[j]; return r; }
// The low bytes of 16 integers in -128..127.
inline void store_bytes(int8_t* p, Ints a) { EACH p[j] = static_cast<int8_t>(a.v[j]); }
// 16 bytes, each in all four bytes of its lane.
inline Ints load_repeated(const int8_t* p) { Ints r; EACH r.v[j] = static_cast<int32_t>(static_cast<uint8_t>(p[j]) * 0x01010101u); return r; }
// Products of unsigned halves of 16 bits, and differences of bytes, without what does not fit.
inline Ints mul_halves(Ints a, Ints b) {
  EACH {
    const uint32_t x = a.v[j], y = b.v[j], low = (x & 0xffff) * (y & 0xffff), high = (x >> 16) * (y >> 16);
    a.v[j] = static_cast<int32_t>(high << 16 | (low & 0xffff));
  }
  return a;
}
inline Ints sub_bytes(Ints a, Ints b) {
  EACH {
    uint32_t r = 0;
    for (int i = 0; i < 32; i += 8) r |= (((static_cast<uint32_t>(a.v[j]) >> i) - (static_cast<uint32_t>(b.v[j]) >> i)) & 0xff) << i;
    a.v[j] = static_cast<int32_t>(r);
  }
  return a;
}
// Lanes 0 … n - 1 of a, and b elsewhere.
inline Floats first(int n, Floats a, Floats b) { EACH a.v[j] = j < n ? a.v[j] : b.v[j]; return a; }

inline float sum(Floats a) {  // halves onto halves
  for (int n = 8; n; n /= 2)
    for (int j = 0; j < n; j++) a.v[j] += a.v[j + n];
  return a.v[0];
}
inline float largest(Floats a) {
  for (int n = 8; n; n /= 2)
    for (int j = 0; j < n; j++) a.v[j] = a.v[j] > a.v[j + n] ? a.v[j] : a.v[j + n];
  return a.v[0];
}
inline int32_t largest(Ints a) {
  int32_t r = a.v[0];
  EACH r = a.v[j] > r ? a.v[j] : r;
  return r;
}
inline int32_t sum(Ints a) {
  int32_t r = 0;
  EACH r += a.v[j];
  return r;
}
#undef EACH

}  // namespace
