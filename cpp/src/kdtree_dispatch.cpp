// Which kernels this processor gets.
#include "delfsearch/cpu.hpp"
#include "simd/kdtree_kernels.hpp"

namespace delfsearch::kdtree {

const Kernels& kernels() {
  static const Kernels& chosen = []() -> const Kernels& {
    const Kernels* found = nullptr;
    if (simd() == Simd::kAvx512) found = avx512_kernels();
    if (simd() == Simd::kAvx512 && amx() && amx_kernels()) found = amx_kernels();
    if (simd() == Simd::kAvx2) found = avx2_kernels();
    if (simd() == Simd::kNeon) found = neon_kernels();
    return found ? *found : scalar_kernels();
  }();
  return chosen;
}

}  // namespace delfsearch::kdtree
