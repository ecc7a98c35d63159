// Uniform 8-bit quantization, one range and step per dimension (paper Sec. 5.2).
//
// Code c of dimension i stands for lower[i] + step[i] * c. The range covers the share
// `clip_quantile` of the values of that dimension, half of the rest being clipped on either side:
// a few far values must not coarsen the step of all the others. A constant dimension has step 0
// and code 0. Values must be finite and at most kMaxMagnitude, so that no squared distance
// overflows float32. Fitting is O(n d), or less: quantiles come from at most kMaxSample rows at
// equal spacing, so that the result depends on the data alone.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "delfsearch/span.hpp"

namespace delfsearch {

struct Quantizer {
  static constexpr float kMaxMagnitude = 1e16f;
  static constexpr std::size_t kMaxSample = std::size_t{1} << 18;

  std::vector<float> lower;
  std::vector<float> step;

  std::size_t dimension() const { return lower.size(); }
};

// X is (n, d) row-major, n >= 1, 0 < clip_quantile <= 1 (1 = the whole range).
Quantizer fit_quantizer(Span<const float> X, std::size_t d, double clip_quantile);

// (n, d) row-major codes, rounded to nearest, halves to even; values outside the range get 0 or
// 255.
std::vector<std::uint8_t> quantize(const Quantizer& quantizer, Span<const float> X);

// (n, d) row-major values that the codes stand for.
std::vector<float> decode(const Quantizer& quantizer, Span<const std::uint8_t> codes);

}  // namespace delfsearch
