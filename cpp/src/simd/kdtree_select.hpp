// The k-th smallest of a few hundred floats by bisection over their bit patterns, counting with
// vectors: no unpredictable branch per element, which is what makes nth_element slow here.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>

namespace delfsearch::kdtree {

// Order-preserving maps between floats (no NaN) and integers.
inline std::int32_t ordered_bits(float value) {
  std::int32_t bits;
  std::memcpy(&bits, &value, 4);
  return bits ^ ((bits >> 31) & 0x7fffffff);
}

inline float from_ordered_bits(std::int32_t bits) {
  bits ^= (bits >> 31) & 0x7fffffff;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

// Ops: count_at_most(values, n, limit), largest_at_most(values, n, limit), smallest(values, n).
// No NaN. Invariant: count(values <= low) < k <= count(values <= high), over bit patterns.
template <typename Ops>
float kth_smallest_by_counting(const float* values, std::size_t n, std::size_t k,
                               std::size_t spare) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  const float largest = Ops::largest_at_most(values, n, kInfinity);
  if (k >= n) return largest;
  std::int64_t low = static_cast<std::int64_t>(ordered_bits(Ops::smallest(values, n))) - 1;
  std::int64_t high = ordered_bits(largest);
  while (high - low > 1) {
    const std::int64_t middle = low + (high - low) / 2;
    const float limit = from_ordered_bits(static_cast<std::int32_t>(middle));
    const std::size_t count = Ops::count_at_most(values, n, limit);
    if (count >= k && count - k <= spare)
      return spare > 0 ? limit : Ops::largest_at_most(values, n, limit);
    if (count < k)
      low = middle;
    else
      high = middle;
  }
  return from_ordered_bits(static_cast<std::int32_t>(high));
}

}  // namespace delfsearch::kdtree
