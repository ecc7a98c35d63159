#include "ransac_kernels.hpp"

#ifdef DELFSEARCH_X86
#if defined(__GNUC__) && !defined(__clang__)
// GCC's own header leaves vectors uninitialised on purpose and then warns of it.
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>

#if defined(__GNUC__) || defined(__clang__)
#define DELFSEARCH_TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,popcnt")))
#define DELFSEARCH_INLINE DELFSEARCH_TARGET inline __attribute__((always_inline))
#else
#define DELFSEARCH_TARGET
#define DELFSEARCH_INLINE inline
#endif

namespace delfsearch::ransac {
namespace {

constexpr int kLanes = 16;

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
DELFSEARCH_INLINE F operator/(F a, F b) { return {_mm512_div_ps(a.v, b.v)}; }
DELFSEARCH_INLINE F root(F a) { return {_mm512_sqrt_ps(a.v)}; }
DELFSEARCH_INLINE F broadcast(float a) { return {_mm512_set1_ps(a)}; }
DELFSEARCH_INLINE F load(const float* a) { return {_mm512_load_ps(a)}; }
DELFSEARCH_INLINE F to_float(U a) { return {_mm512_cvtepi32_ps(a.v)}; }
DELFSEARCH_INLINE F gather(const float* a, U i) { return {_mm512_i32gather_ps(i.v, a, 4)}; }

DELFSEARCH_INLINE U operator+(U a, U b) { return {_mm512_add_epi32(a.v, b.v)}; }
DELFSEARCH_INLINE U operator*(U a, U b) { return {_mm512_mullo_epi32(a.v, b.v)}; }
DELFSEARCH_INLINE U operator^(U a, U b) { return {_mm512_xor_si512(a.v, b.v)}; }
template <int N>
DELFSEARCH_INLINE U shift_right(U a) {
  return {_mm512_srli_epi32(a.v, N)};
}
DELFSEARCH_INLINE U minimum(U a, U b) { return {_mm512_min_epi32(a.v, b.v)}; }
DELFSEARCH_INLINE U to_integer(F a) { return {_mm512_cvttps_epi32(a.v)}; }
DELFSEARCH_INLINE U broadcast_u(std::uint32_t a) {
  return {_mm512_set1_epi32(static_cast<int>(a))};
}
DELFSEARCH_INLINE U count_from(std::uint32_t a) {
  return broadcast_u(a) +
         U{_mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)};
}

DELFSEARCH_INLINE Bits at_most(F a, F b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_LE_OQ)}; }
DELFSEARCH_INLINE Bits operator&(Bits a, Bits b) { return {static_cast<__mmask16>(a.v & b.v)}; }
DELFSEARCH_INLINE std::uint32_t to_bits(Bits a) { return a.v; }
DELFSEARCH_INLINE int count_bits(std::uint64_t a) { return static_cast<int>(_mm_popcnt_u64(a)); }

// Writes the chosen lanes next to each other (and kLanes floats in all); returns how many.
DELFSEARCH_INLINE int store_chosen(float* to, F a, std::uint32_t bits) {
  _mm512_storeu_ps(to, _mm512_maskz_compress_ps(static_cast<__mmask16>(bits), a.v));
  return count_bits(bits);
}

#include "ransac_lanes.inl"

}  // namespace

const Kernels& kernels_avx512() {
  static const Kernels table{draw, next_better, first_near};
  return table;
}

}  // namespace delfsearch::ransac
#endif
