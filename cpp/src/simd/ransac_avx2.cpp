#include "ransac_kernels.hpp"

#ifdef DELFSEARCH_X86
#include <immintrin.h>

#if defined(__GNUC__) || defined(__clang__)
#define DELFSEARCH_TARGET __attribute__((target("avx2,popcnt")))
#define DELFSEARCH_INLINE DELFSEARCH_TARGET inline __attribute__((always_inline))
#else
#define DELFSEARCH_TARGET
#define DELFSEARCH_INLINE inline
#endif

namespace delfsearch::ransac {
namespace {

constexpr int kLanes = 8;

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
DELFSEARCH_INLINE F operator/(F a, F b) { return {_mm256_div_ps(a.v, b.v)}; }
DELFSEARCH_INLINE F root(F a) { return {_mm256_sqrt_ps(a.v)}; }
DELFSEARCH_INLINE F broadcast(float a) { return {_mm256_set1_ps(a)}; }
DELFSEARCH_INLINE F load(const float* a) { return {_mm256_load_ps(a)}; }
DELFSEARCH_INLINE F to_float(U a) { return {_mm256_cvtepi32_ps(a.v)}; }
DELFSEARCH_INLINE F gather(const float* a, U i) { return {_mm256_i32gather_ps(a, i.v, 4)}; }

DELFSEARCH_INLINE U operator+(U a, U b) { return {_mm256_add_epi32(a.v, b.v)}; }
DELFSEARCH_INLINE U operator*(U a, U b) { return {_mm256_mullo_epi32(a.v, b.v)}; }
DELFSEARCH_INLINE U operator^(U a, U b) { return {_mm256_xor_si256(a.v, b.v)}; }
template <int N>
DELFSEARCH_INLINE U shift_right(U a) {
  return {_mm256_srli_epi32(a.v, N)};
}
DELFSEARCH_INLINE U minimum(U a, U b) { return {_mm256_min_epi32(a.v, b.v)}; }
DELFSEARCH_INLINE U to_integer(F a) { return {_mm256_cvttps_epi32(a.v)}; }
DELFSEARCH_INLINE U broadcast_u(std::uint32_t a) {
  return {_mm256_set1_epi32(static_cast<int>(a))};
}
DELFSEARCH_INLINE U count_from(std::uint32_t a) {
  return broadcast_u(a) + U{_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7)};
}

DELFSEARCH_INLINE Bits at_most(F a, F b) { return {_mm256_cmp_ps(a.v, b.v, _CMP_LE_OQ)}; }
DELFSEARCH_INLINE Bits operator&(Bits a, Bits b) { return {_mm256_and_ps(a.v, b.v)}; }
DELFSEARCH_INLINE std::uint32_t to_bits(Bits a) {
  return static_cast<std::uint32_t>(_mm256_movemask_ps(a.v));
}
DELFSEARCH_INLINE int count_bits(std::uint64_t a) { return static_cast<int>(_mm_popcnt_u64(a)); }

// Writes the chosen lanes next to each other; returns how many.
DELFSEARCH_INLINE int store_chosen(float* to, F a, std::uint32_t bits) {
  alignas(32) float lanes[kLanes];
  _mm256_store_ps(lanes, a.v);
  int n = 0;
  for (int j = 0; j < kLanes; ++j) {
    to[n] = lanes[j];
    n += static_cast<int>(bits >> j & 1);
  }
  return n;
}

#include "ransac_lanes.inl"

}  // namespace

const Kernels& kernels_avx2() {
  static const Kernels table{draw, next_better, first_near};
  return table;
}

}  // namespace delfsearch::ransac
#endif
