#include "dispatch.h"

#include <pthread.h>

#include <cstring>

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__linux__)
#include <sys/auxv.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif
#if defined(__APPLE__)
#include <sys/sysctl.h>
#endif

namespace pplx {

#define DECLARE(name) extern const Kernels kernels_##name;
PPLX_ISAS(DECLARE)

namespace {

// Not all of these are used if the compiler was too old for an instruction set.
#pragma GCC diagnostic ignored "-Wunused-function"
bool has_scalar() { return true; }

#if defined(PPLX_EMULATE)
bool has_avx2() { return true; }
bool has_avxvnni() { return true; }
bool has_avx512() { return true; }
bool has_amx() { return true; }
#elif defined(__x86_64__)
struct CpuidWord {
  unsigned a = 0, b = 0, c = 0, d = 0;
  CpuidWord(unsigned leaf, unsigned sub) { __get_cpuid_count(leaf, sub, &a, &b, &c, &d); }
};
bool bit(unsigned word, int n) { return word >> n & 1; }

// The register states that the system saves.
bool saves(uint64_t mask) {
  if (!bit(CpuidWord(1, 0).c, 27)) return false;
  unsigned low, high;
  asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (low & mask) == mask;
}
bool has_avx2() { return saves(0x6) && bit(CpuidWord(1, 0).c, 12) && bit(CpuidWord(7, 0).b, 5); }
bool has_avxvnni() { return has_avx2() && bit(CpuidWord(7, 1).a, 4); }
bool has_avx512() {
  const CpuidWord word(7, 0);
  return has_avx2() && saves(0xe6) && bit(word.b, 16) && bit(word.b, 17) && bit(word.b, 30) && bit(word.b, 31) && bit(word.c, 11);
}
// Linux lets a process use tiles only when it asks.
bool has_amx() {
  const CpuidWord word(7, 0);
  if (!has_avx512() || !bit(word.d, 24) || !bit(word.d, 25) || !saves(0x60000)) return false;
#if defined(__linux__)
  constexpr int kRequest = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM
  return syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
#else
  return false;
#endif
}
#elif defined(__aarch64__)
#if defined(__APPLE__)
bool feature(const char* name) {
  int value = 0;
  size_t bytes = sizeof value;
  return !sysctlbyname(name, &value, &bytes, nullptr, 0) && value;
}
bool has_dotprod() { return feature("hw.optional.arm.FEAT_DotProd"); }
bool has_i8mm() { return has_dotprod() && feature("hw.optional.arm.FEAT_I8MM"); }
#else
bool has_dotprod() { return getauxval(AT_HWCAP) >> 20 & 1; }  // HWCAP_ASIMDDP
bool has_i8mm() { return has_dotprod() && (getauxval(AT_HWCAP2) >> 13 & 1); }  // HWCAP2_I8MM
#endif
#endif

struct Isa {
  const Kernels& kernels;
  bool (*is_available)();
  bool available;
};
#define ENTRY(name) {kernels_##name, has_##name, false},
Isa isas[] = {PPLX_ISAS(ENTRY)};
char available[128], compiled[128];
pthread_once_t once = PTHREAD_ONCE_INIT;

void append(char* names, const char* name) {
  if (*names) std::strcat(names, ",");
  std::strcat(names, name);
}

void find_isas() {
  for (Isa& isa : isas) {
    isa.available = isa.is_available();
    append(compiled, isa.kernels.name);
    if (isa.available) append(available, isa.kernels.name);
  }
}

}  // namespace

const char* available_names() {
  pthread_once(&once, find_isas);
  return available;
}

const char* compiled_names() {
  pthread_once(&once, find_isas);
  return compiled;
}

const Kernels* kernels_for(const char* name) {
  pthread_once(&once, find_isas);
  for (const Isa& isa : isas)
    if (isa.available && (!name || !*name || !std::strcmp(name, isa.kernels.name))) return &isa.kernels;
  return nullptr;
}

}  // namespace pplx
