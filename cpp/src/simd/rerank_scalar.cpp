#include "delfsearch/cpu.hpp"
#include "rerank_kernels.hpp"

namespace delfsearch::rerank_kernels {

void distances_scalar(const Query& query, const std::uint8_t* const* rows, std::size_t n,
                      float* out) {
  for (std::size_t r = 0; r < n; ++r) {
    if (r + kAhead < n) ask_for(rows[r + kAhead], query.d);
    double sums[8] = {};
    for (std::size_t i = 0; i < query.d; ++i) {
      const float value = query.lower[i] + query.step[i] * static_cast<float>(rows[r][i]);
      const double difference = static_cast<double>(value) - query.values[i];
      sums[i % 8] = sums[i % 8] + difference * difference;
    }
    out[r] = static_cast<float>(((sums[0] + sums[4]) + (sums[2] + sums[6])) +
                                ((sums[1] + sums[5]) + (sums[3] + sums[7])));
  }
}

Distances distances() {
#ifdef DELFSEARCH_X86
  if (simd() == Simd::kAvx512) return distances_avx512;
  if (simd() == Simd::kAvx2) return distances_avx2;
#endif
  return distances_scalar;
}

}  // namespace delfsearch::rerank_kernels
