#include <bitset>
#include <cmath>

#include "ransac_kernels.hpp"

#define DELFSEARCH_TARGET
#define DELFSEARCH_INLINE inline

namespace delfsearch::ransac {
namespace {

constexpr int kLanes = 1;

using F = float;
struct U {
  std::uint32_t v;
};
using Bits = std::uint32_t;  // 0 or 1

DELFSEARCH_INLINE F root(F a) { return std::sqrt(a); }
DELFSEARCH_INLINE F broadcast(float a) { return a; }
DELFSEARCH_INLINE F load(const float* a) { return *a; }
DELFSEARCH_INLINE F to_float(U a) { return static_cast<float>(static_cast<std::int32_t>(a.v)); }
DELFSEARCH_INLINE F gather(const float* a, U i) { return a[i.v]; }

DELFSEARCH_INLINE U operator+(U a, U b) { return {a.v + b.v}; }
DELFSEARCH_INLINE U operator*(U a, U b) { return {a.v * b.v}; }
DELFSEARCH_INLINE U operator^(U a, U b) { return {a.v ^ b.v}; }
template <int N>
DELFSEARCH_INLINE U shift_right(U a) {
  return {a.v >> N};
}
DELFSEARCH_INLINE U minimum(U a, U b) { return a.v < b.v ? a : b; }
DELFSEARCH_INLINE U to_integer(F a) {
  return {static_cast<std::uint32_t>(static_cast<std::int32_t>(a))};
}
DELFSEARCH_INLINE U broadcast_u(std::uint32_t a) { return {a}; }
DELFSEARCH_INLINE U count_from(std::uint32_t a) { return {a}; }

DELFSEARCH_INLINE Bits at_most(F a, F b) { return a <= b ? 1u : 0u; }
DELFSEARCH_INLINE std::uint32_t to_bits(Bits a) { return a; }
DELFSEARCH_INLINE int count_bits(std::uint64_t a) {
  return static_cast<int>(std::bitset<64>(a).count());
}

// Writes the lane; returns 1 if it is to be kept.
DELFSEARCH_INLINE int store_chosen(float* to, F a, std::uint32_t bits) {
  *to = a;
  return static_cast<int>(bits);
}

#include "ransac_lanes.inl"

}  // namespace

const Kernels& kernels_scalar() {
  static const Kernels table{draw, next_better, first_near};
  return table;
}

}  // namespace delfsearch::ransac
