#include <limits>

#include "centroid_kernels.hpp"

#ifdef DELFSEARCH_X86
#include <immintrin.h>

#if defined(__GNUC__) || defined(__clang__)
#define DELFSEARCH_TARGET __attribute__((target("avx2")))
#define DELFSEARCH_INLINE DELFSEARCH_TARGET inline __attribute__((always_inline))
#else
#define DELFSEARCH_TARGET
#define DELFSEARCH_INLINE inline
#endif

namespace delfsearch::centroids {
namespace {

constexpr int kLanes = 8;
constexpr int kMostVectors = 2;

struct F {
  __m256 v;
};
struct U {
  __m256i v;
};
struct Bits {
  __m256 v;
};

DELFSEARCH_INLINE F operator+(F a, F b) { return {_mm256_add_ps(a.v, b.v)}; }
DELFSEARCH_INLINE F operator-(F a, F b) { return {_mm256_sub_ps(a.v, b.v)}; }
DELFSEARCH_INLINE F operator*(F a, F b) { return {_mm256_mul_ps(a.v, b.v)}; }
DELFSEARCH_INLINE F broadcast(float a) { return {_mm256_set1_ps(a)}; }
DELFSEARCH_INLINE F load(const float* a) { return {_mm256_loadu_ps(a)}; }
DELFSEARCH_INLINE F whole_lanes(const std::int8_t* a) {
  return {_mm256_cvtepi32_ps(
      _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(a))))};
}
DELFSEARCH_INLINE void store(float* to, F a) { _mm256_storeu_ps(to, a.v); }
DELFSEARCH_INLINE void store(std::uint32_t* to, U a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), a.v);
}
DELFSEARCH_INLINE U broadcast_u(std::uint32_t a) {
  return {_mm256_set1_epi32(static_cast<int>(a))};
}
DELFSEARCH_INLINE U count_from(std::uint32_t a) {
  return {_mm256_add_epi32(_mm256_set1_epi32(static_cast<int>(a)),
                           _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7))};
}
DELFSEARCH_INLINE F lower(F a, F b) { return {_mm256_min_ps(a.v, b.v)}; }
DELFSEARCH_INLINE float lowest_lane(F a) {
  __m128 low = _mm_min_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
  low = _mm_min_ps(low, _mm_movehl_ps(low, low));
  return _mm_cvtss_f32(_mm_min_ss(low, _mm_movehdup_ps(low)));
}
DELFSEARCH_INLINE Bits below(F a, F b) { return {_mm256_cmp_ps(a.v, b.v, _CMP_LT_OQ)}; }
DELFSEARCH_INLINE F choose(Bits b, F yes, F no) { return {_mm256_blendv_ps(no.v, yes.v, b.v)}; }
DELFSEARCH_INLINE U choose(Bits b, U yes, U no) {
  return {_mm256_castps_si256(
      _mm256_blendv_ps(_mm256_castsi256_ps(no.v), _mm256_castsi256_ps(yes.v), b.v))};
}

#include "centroid_lanes.inl"

}  // namespace

const Kernels& kernels_avx2() {
  static const Kernels table{nearest, squared_distances, product, part_tables, part_nearest,
                             widen,   least_of_lanes};
  return table;
}

}  // namespace delfsearch::centroids
#endif
