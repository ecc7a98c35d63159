#include <algorithm>
#include <limits>

#include "centroid_kernels.hpp"

#define DELFSEARCH_TARGET
#define DELFSEARCH_INLINE inline

namespace delfsearch::centroids {
namespace {

constexpr int kLanes = 4;
constexpr int kMostVectors = 2;

// Four at a time in plain C++, which compilers turn into what the processor surely has.
struct F {
  float v[kLanes];
};
struct U {
  std::uint32_t v[kLanes];
};
struct Bits {
  bool v[kLanes];
};

template <typename T, typename Make>
DELFSEARCH_INLINE T each(Make make) {
  T out;
  for (int j = 0; j < kLanes; ++j) out.v[j] = make(j);
  return out;
}
DELFSEARCH_INLINE F operator+(F a, F b) {
  return each<F>([&](int j) { return a.v[j] + b.v[j]; });
}
DELFSEARCH_INLINE F operator-(F a, F b) {
  return each<F>([&](int j) { return a.v[j] - b.v[j]; });
}
DELFSEARCH_INLINE F operator*(F a, F b) {
  return each<F>([&](int j) { return a.v[j] * b.v[j]; });
}
DELFSEARCH_INLINE F broadcast(float a) {
  return each<F>([&](int) { return a; });
}
DELFSEARCH_INLINE F load(const float* a) {
  return each<F>([&](int j) { return a[j]; });
}
DELFSEARCH_INLINE F whole_lanes(const std::int8_t* a) {
  return each<F>([&](int j) { return static_cast<float>(a[j]); });
}
DELFSEARCH_INLINE void store(float* to, F a) {
  for (int j = 0; j < kLanes; ++j) to[j] = a.v[j];
}
DELFSEARCH_INLINE void store(std::uint32_t* to, U a) {
  for (int j = 0; j < kLanes; ++j) to[j] = a.v[j];
}
DELFSEARCH_INLINE U broadcast_u(std::uint32_t a) {
  return each<U>([&](int) { return a; });
}
DELFSEARCH_INLINE U count_from(std::uint32_t a) {
  return each<U>([&](int j) { return a + static_cast<std::uint32_t>(j); });
}
DELFSEARCH_INLINE F lower(F a, F b) {
  return each<F>([&](int j) { return b.v[j] < a.v[j] ? b.v[j] : a.v[j]; });
}
DELFSEARCH_INLINE float lowest_lane(F a) { return *std::min_element(a.v, a.v + kLanes); }
DELFSEARCH_INLINE Bits below(F a, F b) {
  return each<Bits>([&](int j) { return a.v[j] < b.v[j]; });
}
template <typename T>
DELFSEARCH_INLINE T choose(Bits b, T yes, T no) {
  return each<T>([&](int j) { return b.v[j] ? yes.v[j] : no.v[j]; });
}

#include "centroid_lanes.inl"

}  // namespace

const Kernels& kernels_scalar() {
  static const Kernels table{nearest, squared_distances, product, part_tables, part_nearest,
                             widen,   least_of_lanes};
  return table;
}

}  // namespace delfsearch::centroids
