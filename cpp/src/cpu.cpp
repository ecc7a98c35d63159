#include "delfsearch/cpu.hpp"

#include <cstdlib>
#include <stdexcept>
#include <string>

#if defined(_MSC_VER) && defined(_M_X64)
#include <intrin.h>
#endif
#if defined(__linux__) && defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace delfsearch {
namespace {

#if defined(_MSC_VER) && defined(_M_X64)
// MSVC has no __builtin_cpu_supports. Bits as in the processor manuals, CPUID leaves 1 and 7.
bool supports_avx2() {
  int r[4];
  __cpuid(r, 1);
  const bool osxsave = (r[2] >> 27) & 1, fma = (r[2] >> 12) & 1;
  if (!osxsave || !fma || (_xgetbv(0) & 6) != 6) return false;
  __cpuidex(r, 7, 0);
  return (r[1] >> 5) & 1;
}
bool supports_avx512() {
  if (!supports_avx2() || (_xgetbv(0) & 0xe6) != 0xe6) return false;
  int r[4];
  __cpuidex(r, 7, 0);
  const unsigned ebx = static_cast<unsigned>(r[1]), ecx = static_cast<unsigned>(r[2]);
  return (ebx >> 16 & 1) && (ebx >> 17 & 1) && (ebx >> 30 & 1) && (ebx >> 31 & 1) &&
         (ecx >> 1 & 1) && (ecx >> 11 & 1);
}
#elif defined(__x86_64__)
bool supports_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
bool supports_avx512() {
  return supports_avx2() && __builtin_cpu_supports("avx512f") &&
         __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vnni") &&
         __builtin_cpu_supports("avx512vbmi");
}
#else
bool supports_avx2() { return false; }
bool supports_avx512() { return false; }
#endif

bool supports_neon() {
#if defined(__aarch64__) || defined(_M_ARM64)
  return true;
#else
  return false;
#endif
}

// Bits 24 (AMX-TILE) and 25 (AMX-INT8) of leaf 7's EDX; then the process must ask for tile data.
bool enable_amx() {
#if defined(__linux__) && defined(__x86_64__)
  unsigned eax, ebx, ecx, edx;
  if (!supports_avx512() || !__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)) return false;
  if ((edx >> 24 & 3) != 3) return false;
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

std::string asked_simd() {
  const char* asked = std::getenv("DELFSEARCH_SIMD");
  return asked ? asked : "";
}

Simd detect() {
  const std::string name = asked_simd();
  if (name.empty()) {
    if (supports_avx512()) return Simd::kAvx512;
    if (supports_avx2()) return Simd::kAvx2;
    if (supports_neon()) return Simd::kNeon;
    return Simd::kScalar;
  }
  if (name == "scalar") return Simd::kScalar;
  if (name == "avx2" && supports_avx2()) return Simd::kAvx2;
  if (name == "avx512" && supports_avx512()) return Simd::kAvx512;
  if (name == "amx" && enable_amx()) return Simd::kAvx512;
  if (name == "neon" && supports_neon()) return Simd::kNeon;
  throw std::invalid_argument(
      "DELFSEARCH_SIMD must be scalar, avx2, avx512, amx or neon, and one that "
      "this processor has; got " +
      name);
}

}  // namespace

Simd simd() {
  static const Simd chosen = detect();
  return chosen;
}

bool amx() {
  static const bool chosen = simd() == Simd::kAvx512 && asked_simd() != "avx512" && enable_amx();
  return chosen;
}

const char* simd_name(Simd simd) {
  switch (simd) {
    case Simd::kScalar:
      return "scalar";
    case Simd::kAvx2:
      return "avx2";
    case Simd::kAvx512:
      return "avx512";
    case Simd::kNeon:
      return "neon";
  }
  return "unknown";
}

}  // namespace delfsearch
