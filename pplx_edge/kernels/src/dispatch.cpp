#include "dispatch.h"

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
  bool available;
};

const Isa* all_isas(int* count) {
#define ENTRY(name) {kernels_##name, has_##name()},
  static const Isa isas[] = {PPLX_ISAS(ENTRY)};
  *count = sizeof isas / sizeof *isas;
  return isas;
}

struct Names {
  char text[128] = "";
  explicit Names(bool only_available) {
    int n;
    const Isa* isas = all_isas(&n);
    for (int i = 0; i < n; i++)
      if (isas[i].available || !only_available) {
        if (*text) std::strcat(text, ",");
        std::strcat(text, isas[i].kernels.name);
      }
  }
};

}  // namespace

const char* available_names() {
  static const Names names(true);
  return names.text;
}

const char* compiled_names() {
  static const Names names(false);
  return names.text;
}

const Kernels* kernels_for(const char* name) {
  int n;
  const Isa* isas = all_isas(&n);
  for (int i = 0; i < n; i++)
    if (isas[i].available && (!name || !*name || !std::strcmp(name, isas[i].kernels.name))) return &isas[i].kernels;
  return nullptr;
}

}  // namespace pplx
