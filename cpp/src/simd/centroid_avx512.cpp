#include <limits>

#include "centroid_kernels.hpp"

#ifdef DELFSEARCH_X86
#if defined(__GNUC__) && !defined(__clang__)
// GCC's own header leaves vectors uninitialised on purpose and then warns of it.
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>

#if defined(__GNUC__) || defined(__clang__)
#define DELFSEARCH_TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq")))
#define DELFSEARCH_INLINE DELFSEARCH_TARGET inline __attribute__((always_inline))
#else
#define DELFSEARCH_TARGET
#define DELFSEARCH_INLINE inline
#endif

namespace delfsearch::centroids {
namespace {

constexpr int kLanes = 16;
constexpr int kMostVectors = 2;

struct F {
  __m512 v;
};
struct U {
  __m512i v;
};
struct Bits {
  __mmask16 v;
};

DELFSEARCH_INLINE F operator+(F a, F b) { return {_mm512_add_ps(a.v, b.v)}; }
DELFSEARCH_INLINE F operator-(F a, F b) { return {_mm512_sub_ps(a.v, b.v)}; }
DELFSEARCH_INLINE F operator*(F a, F b) { return {_mm512_mul_ps(a.v, b.v)}; }
DELFSEARCH_INLINE F broadcast(float a) { return {_mm512_set1_ps(a)}; }
DELFSEARCH_INLINE F load(const float* a) { return {_mm512_loadu_ps(a)}; }
DELFSEARCH_INLINE F whole_lanes(const std::int8_t* a) {
  return {_mm512_cvtepi32_ps(
      _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(a))))};
}
DELFSEARCH_INLINE void store(float* to, F a) { _mm512_storeu_ps(to, a.v); }
DELFSEARCH_INLINE void store(std::uint32_t* to, U a) { _mm512_storeu_si512(to, a.v); }
DELFSEARCH_INLINE U broadcast_u(std::uint32_t a) {
  return {_mm512_set1_epi32(static_cast<int>(a))};
}
DELFSEARCH_INLINE U count_from(std::uint32_t a) {
  return {
      _mm512_add_epi32(_mm512_set1_epi32(static_cast<int>(a)),
                       _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15))};
}
DELFSEARCH_INLINE F lower(F a, F b) { return {_mm512_min_ps(a.v, b.v)}; }
DELFSEARCH_INLINE float lowest_lane(F a) { return _mm512_reduce_min_ps(a.v); }
DELFSEARCH_INLINE Bits below(F a, F b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ)}; }
DELFSEARCH_INLINE F choose(Bits b, F yes, F no) { return {_mm512_mask_blend_ps(b.v, no.v, yes.v)}; }
DELFSEARCH_INLINE U choose(Bits b, U yes, U no) {
  return {_mm512_mask_blend_epi32(b.v, no.v, yes.v)};
}

#include "centroid_lanes.inl"

}  // namespace

const Kernels& kernels_avx512() {
  static const Kernels table{nearest, squared_distances, product, part_tables, part_nearest,
                             widen,   least_of_lanes};
  return table;
}

}  // namespace delfsearch::centroids
#endif
