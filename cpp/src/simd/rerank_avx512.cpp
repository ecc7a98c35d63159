#include "rerank_kernels.hpp"

#ifdef DELFSEARCH_X86
#if defined(__GNUC__) && !defined(__clang__)
// GCC's own header leaves vectors uninitialised on purpose and then warns of it.
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>

#if defined(__GNUC__) || defined(__clang__)
#define DELFSEARCH_TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq")))
#else
#define DELFSEARCH_TARGET
#endif

namespace delfsearch::rerank_kernels {

DELFSEARCH_TARGET void distances_avx512(const Query& query, const std::uint8_t* const* rows,
                                        std::size_t n, float* out) {
  for (std::size_t r = 0; r < n; ++r) {
    if (r + kAhead < n) ask_for(rows[r + kAhead], query.d);
    __m512d sums = _mm512_setzero_pd();
    for (std::size_t i = 0; i < query.padded; i += 8) {
      const auto here = static_cast<__mmask16>(query.d - i < 8 ? (1u << (query.d - i)) - 1 : 0xff);
      const __m256i wide = _mm256_cvtepu8_epi32(_mm_maskz_loadu_epi8(here, rows[r] + i));
      const __m256 value =
          _mm256_add_ps(_mm256_loadu_ps(query.lower + i),
                        _mm256_mul_ps(_mm256_loadu_ps(query.step + i), _mm256_cvtepi32_ps(wide)));
      const __m512d difference =
          _mm512_sub_pd(_mm512_cvtps_pd(value), _mm512_loadu_pd(query.values + i));
      sums = _mm512_add_pd(sums, _mm512_mul_pd(difference, difference));
    }
    const __m256d four =
        _mm256_add_pd(_mm512_castpd512_pd256(sums), _mm512_extractf64x4_pd(sums, 1));
    const __m128d two = _mm_add_pd(_mm256_castpd256_pd128(four), _mm256_extractf128_pd(four, 1));
    out[r] = static_cast<float>(_mm_cvtsd_f64(_mm_add_sd(two, _mm_unpackhi_pd(two, two))));
  }
}

}  // namespace delfsearch::rerank_kernels
#endif
