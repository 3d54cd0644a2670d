// The floating-point modes that the arithmetic is defined for.
#pragma once
#include <cstdint>
#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace pplx {

// Rounding to nearest and no flushing of denormals in this thread, whatever other libraries have set, until the end of the scope.
class FloatModes {
 public:
#if defined(__x86_64__)
  FloatModes() : before_(_mm_getcsr()) { _mm_setcsr(0x1f80); }
  ~FloatModes() { _mm_setcsr(before_); }

 private:
  unsigned before_;
#elif defined(__aarch64__)
  FloatModes() {
    asm volatile("mrs %0, fpcr" : "=r"(before_));
    asm volatile("msr fpcr, %0" : : "r"(uint64_t{0}));
  }
  ~FloatModes() { asm volatile("msr fpcr, %0" : : "r"(before_)); }

 private:
  uint64_t before_;
#endif
};

}  // namespace pplx
