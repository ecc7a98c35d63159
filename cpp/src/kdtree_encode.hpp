// How a vector becomes the integers that kernels multiply with codes (kdtree.hpp defines it), and
// fetching ahead what is scattered.
#pragma once

#include <algorithm>

namespace delfsearch::kdtree {

// Nearest integer, halves to even: the sum has no bits left for a fraction. No call, unlike
// nearbyint.
inline int round_to_int(double x) {
  constexpr double kShift = 6755399441055744.0;  // 1.5 * 2^52
  return static_cast<int>((x + kShift) - kShift);
}

// What V = 1 stands for, from the largest |v| and the sum of all |v|: no V leaves 16 bits, no sum
// of products 32.
inline double unit_of(double largest, double total) {
  return std::max(largest / 32512.0, total / 8388608.0);
}

inline int fine_part(double v, double unit) { return unit > 0 ? round_to_int(v / unit) : 0; }

// V = 256 * high + low with low in [-128, 127].
inline int high_part(int fine) { return (fine + 128) >> 8; }

inline void prefetch(const void* address) {
#if defined(__GNUC__) || defined(__clang__)
  __builtin_prefetch(address);
#else
  (void)address;
#endif
}

}  // namespace delfsearch::kdtree
