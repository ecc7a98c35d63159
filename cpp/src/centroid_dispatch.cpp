// Which kernels this processor gets.
#include "delfsearch/cpu.hpp"
#include "simd/centroid_kernels.hpp"

namespace delfsearch::centroids {

const Kernels& kernels() {
#ifdef DELFSEARCH_X86
  if (simd() == Simd::kAvx512) return kernels_avx512();
  if (simd() == Simd::kAvx2) return kernels_avx2();
#endif
  return kernels_scalar();
}

}  // namespace delfsearch::centroids
