#include "rerank_kernels.hpp"

#ifdef DELFSEARCH_X86
#include <immintrin.h>

#include <cstring>

#if defined(__GNUC__) || defined(__clang__)
#define DELFSEARCH_TARGET __attribute__((target("avx2")))
#else
#define DELFSEARCH_TARGET
#endif

namespace delfsearch::rerank_kernels {

DELFSEARCH_TARGET void distances_avx2(const Query& query, const std::uint8_t* const* rows,
                                      std::size_t n, float* out) {
  for (std::size_t r = 0; r < n; ++r) {
    if (r + kAhead < n) ask_for(rows[r + kAhead], query.d);
    __m256d low = _mm256_setzero_pd(), high = low;
    for (std::size_t i = 0; i < query.padded; i += 8) {
      std::uint8_t last[8] = {};
      const std::uint8_t* codes = rows[r] + i;
      if (i + 8 > query.d) {
        std::memcpy(last, codes, query.d - i);
        codes = last;
      }
      const __m256i wide =
          _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(codes)));
      const __m256 value =
          _mm256_add_ps(_mm256_loadu_ps(query.lower + i),
                        _mm256_mul_ps(_mm256_loadu_ps(query.step + i), _mm256_cvtepi32_ps(wide)));
      const __m256d a = _mm256_sub_pd(_mm256_cvtps_pd(_mm256_castps256_ps128(value)),
                                      _mm256_loadu_pd(query.values + i));
      const __m256d b = _mm256_sub_pd(_mm256_cvtps_pd(_mm256_extractf128_ps(value, 1)),
                                      _mm256_loadu_pd(query.values + i + 4));
      low = _mm256_add_pd(low, _mm256_mul_pd(a, a));
      high = _mm256_add_pd(high, _mm256_mul_pd(b, b));
    }
    const __m256d four = _mm256_add_pd(low, high);
    const __m128d two = _mm_add_pd(_mm256_castpd256_pd128(four), _mm256_extractf128_pd(four, 1));
    out[r] = static_cast<float>(_mm_cvtsd_f64(_mm_add_sd(two, _mm_unpackhi_pd(two, two))));
  }
}

}  // namespace delfsearch::rerank_kernels
#endif
