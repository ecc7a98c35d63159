#include "delfsearch/quantizer.hpp"

#include <algorithm>
#include <cmath>
#include <stdexcept>

namespace delfsearch {
namespace {

void check_rows(std::size_t size, std::size_t d) {
  if (d == 0 || size % d != 0)
    throw std::invalid_argument("the number of values must be a multiple of the dimension");
}

}  // namespace

Quantizer fit_quantizer(Span<const float> X, std::size_t d, double clip_quantile) {
  check_rows(X.size(), d);
  const std::size_t n = X.size() / d;
  if (n == 0) throw std::invalid_argument("a quantizer needs at least one row");
  if (!(clip_quantile > 0 && clip_quantile <= 1))
    throw std::invalid_argument("clip_quantile must be greater than 0 and at most 1");

  const std::size_t stride = (n + Quantizer::kMaxSample - 1) / Quantizer::kMaxSample;
  const std::size_t n_sample = (n + stride - 1) / stride;
  const auto clipped = static_cast<std::size_t>(
      std::floor((1.0 - clip_quantile) / 2 * static_cast<double>(n_sample - 1)));
  const auto low_rank = static_cast<std::ptrdiff_t>(clipped);
  const auto high_rank = static_cast<std::ptrdiff_t>(n_sample - 1 - clipped);

  Quantizer quantizer;
  quantizer.lower.resize(d);
  quantizer.step.resize(d);
  std::vector<float> values(n_sample);
  for (std::size_t i = 0; i < d; ++i) {
    for (std::size_t j = 0; j < n_sample; ++j) values[j] = X[j * stride * d + i];
    std::nth_element(values.begin(), values.begin() + low_rank, values.end());
    const double low = values[clipped];
    std::nth_element(values.begin() + low_rank, values.begin() + high_rank, values.end());
    const double high = values[static_cast<std::size_t>(high_rank)];
    quantizer.lower[i] = static_cast<float>(low);
    quantizer.step[i] = static_cast<float>((high - low) / 255);
  }
  return quantizer;
}

std::vector<std::uint8_t> quantize(const Quantizer& quantizer, Span<const float> X) {
  const std::size_t d = quantizer.dimension();
  check_rows(X.size(), d);
  // In double: the quotient of two floats is then never rounded up to the next half.
  std::vector<double> inverse(d), lower(quantizer.lower.begin(), quantizer.lower.end());
  for (std::size_t i = 0; i < d; ++i)
    inverse[i] = quantizer.step[i] > 0 ? 1.0 / static_cast<double>(quantizer.step[i]) : 0.0;
  std::vector<std::uint8_t> codes(X.size());
  for (std::size_t row = 0; row < X.size(); row += d)
    for (std::size_t i = 0; i < d; ++i) {
      const double c = (static_cast<double>(X[row + i]) - lower[i]) * inverse[i];
      // Adding and taking away 1.5 * 2^52 rounds to an integer, halves to even, without a call.
      constexpr double kRound = 6755399441055744.0;
      const double rounded = (std::min(std::max(c, 0.0), 255.0) + kRound) - kRound;
      codes[row + i] = static_cast<std::uint8_t>(rounded);
    }
  return codes;
}

std::vector<float> decode(const Quantizer& quantizer, Span<const std::uint8_t> codes) {
  const std::size_t d = quantizer.dimension();
  check_rows(codes.size(), d);
  std::vector<float> X(codes.size());
  for (std::size_t row = 0; row < codes.size(); row += d)
    for (std::size_t i = 0; i < d; ++i)
      X[row + i] = quantizer.lower[i] + quantizer.step[i] * static_cast<float>(codes[row + i]);
  return X;
}

}  // namespace delfsearch
