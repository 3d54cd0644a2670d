// 16 virtual lanes in four registers of NEON.
#pragma once
#include <arm_neon.h>

namespace {

struct Floats { float32x4_t v[4]; };
struct Ints { int32x4_t v[4]; };

#define EACH for (int j = 0; j < 4; j++)
inline Floats load(const float* p) { Floats r; EACH r.v[j] = vld1q_f32(p + 4 * j); return r; }
inline void store(float* p, Floats a) { EACH vst1q_f32(p + 4 * j, a.v[j]); }
inline Floats set(float x) { Floats r; EACH r.v[j] = vdupq_n_f32(x); return r; }
inline Floats add(Floats a, Floats b) { EACH a.v[j] = vaddq_f32(a.v[j], b.v[j]); return a; }
inline Floats sub(Floats a, Floats b) { EACH a.v[j] = vsubq_f32(a.v[j], b.v[j]); return a; }
inline Floats mul(Floats a, Floats b) { EACH a.v[j] = vmulq_f32(a.v[j], b.v[j]); return a; }
inline Floats div(Floats a, Floats b) { EACH a.v[j] = vdivq_f32(a.v[j], b.v[j]); return a; }
inline Floats fma(Floats a, Floats b, Floats c) { EACH c.v[j] = vfmaq_f32(c.v[j], a.v[j], b.v[j]); return c; }
inline Floats neg_fma(Floats a, Floats b, Floats c) { EACH c.v[j] = vfmsq_f32(c.v[j], a.v[j], b.v[j]); return c; }
inline Floats max(Floats a, Floats b) { EACH a.v[j] = vmaxq_f32(a.v[j], b.v[j]); return a; }
inline Floats min(Floats a, Floats b) { EACH a.v[j] = vminq_f32(a.v[j], b.v[j]); return a; }
inline Ints as_ints(Floats a) { Ints r; EACH r.v[j] = vreinterpretq_s32_f32(a.v[j]); return r; }
inline Floats as_floats(Ints a) { Floats r; EACH r.v[j] = vreinterpretq_f32_s32(a.v[j]); return r; }
inline Ints round_ints(Floats a) { Ints r; EACH r.v[j] = vcvtnq_s32_f32(a.v[j]); return r; }
inline Floats to_floats(Ints a) { Floats r; EACH r.v[j] = vcvtq_f32_s32(a.v[j]); return r; }
inline Ints load(const int32_t* p) { Ints r; EACH r.v[j] = vld1q_s32(p + 4 * j); return r; }
inline void store(int32_t* p, Ints a) { EACH vst1q_s32(p + 4 * j, a.v[j]); }
inline Ints set(int32_t x) { Ints r; EACH r.v[j] = vdupq_n_s32(x); return r; }
inline Ints add(Ints a, Ints b) { EACH a.v[j] = vaddq_s32(a.v[j], b.v[j]); return a; }
inline Ints max(Ints a, Ints b) { EACH a.v[j] = vmaxq_s32(a.v[j], b.v[j]); return a; }
inline Ints both(Ints a, Ints b) { EACH a.v[j] = vandq_s32(a.v[j], b.v[j]); return a; }
template <int N> inline Ints shift_left(Ints a) { EACH a.v[j] = vshlq_n_s32(a.v[j], N); return a; }
template <int N> inline Ints shift_right(Ints a) { EACH a.v[j] = vshrq_n_s32(a.v[j], N); return a; }
inline Ints load_bytes(const int8_t* p) {
  int8x16_t x = vld1q_s8(p);
  int16x8_t low = vmovl_s8(vget_low_s8(x)), high = vmovl_high_s8(x);
  return {{vmovl_s16(vget_low_s16(low)), vmovl_high_s16(low), vmovl_s16(vget_low_s16(high)), vmovl_high_s16(high)}};
}
inline int8x16_t bytes(Ints a) {
  int16x8_t low = vqmovn_high_s32(vqmovn_s32(a.v[0]), a.v[1]), high = vqmovn_high_s32(vqmovn_s32(a.v[2]), a.v[3]);
  return vqmovn_high_s16(vqmovn_s16(low), high);
}
inline void store_bytes(int8_t* p, Ints a) { vst1q_s8(p, bytes(a)); }
inline Ints load_repeated(const int8_t* p) {
  const int8x16_t x = vld1q_s8(p), low = vzip1q_s8(x, x), high = vzip2q_s8(x, x);
  return {{vreinterpretq_s32_s8(vzip1q_s8(low, low)), vreinterpretq_s32_s8(vzip2q_s8(low, low)),
           vreinterpretq_s32_s8(vzip1q_s8(high, high)), vreinterpretq_s32_s8(vzip2q_s8(high, high))}};
}
inline Ints mul_halves(Ints a, Ints b) {
  EACH a.v[j] = vreinterpretq_s32_s16(vmulq_s16(vreinterpretq_s16_s32(a.v[j]), vreinterpretq_s16_s32(b.v[j])));
  return a;
}
inline Ints sub_bytes(Ints a, Ints b) {
  EACH a.v[j] = vreinterpretq_s32_s8(vsubq_s8(vreinterpretq_s8_s32(a.v[j]), vreinterpretq_s8_s32(b.v[j])));
  return a;
}
inline Floats first(int n, Floats a, Floats b) {
  const int32_t index[4] = {0, 1, 2, 3};
  int32x4_t lane = vld1q_s32(index);
  EACH a.v[j] = vbslq_f32(vcltq_s32(lane, vdupq_n_s32(n - 4 * j)), a.v[j], b.v[j]);
  return a;
}

inline float sum(Floats a) {
  float32x4_t q = vaddq_f32(vaddq_f32(a.v[0], a.v[2]), vaddq_f32(a.v[1], a.v[3]));
  float32x2_t d = vadd_f32(vget_low_f32(q), vget_high_f32(q));
  return vget_lane_f32(d, 0) + vget_lane_f32(d, 1);
}
inline float largest(Floats a) { return vmaxvq_f32(vmaxq_f32(vmaxq_f32(a.v[0], a.v[2]), vmaxq_f32(a.v[1], a.v[3]))); }
inline int32_t largest(Ints a) { return vmaxvq_s32(vmaxq_s32(vmaxq_s32(a.v[0], a.v[2]), vmaxq_s32(a.v[1], a.v[3]))); }
inline int32_t sum(Ints a) { return vaddvq_s32(vaddq_s32(vaddq_s32(a.v[0], a.v[2]), vaddq_s32(a.v[1], a.v[3]))); }
#undef EACH

}  // namespace
