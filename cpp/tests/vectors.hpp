// Random vectors and their distances, for tests.
#pragma once

#include <cstddef>
#include <random>
#include <vector>

namespace delfsearch_test {

inline std::vector<float> gaussian(std::size_t n, unsigned seed, float shift = 0.0f) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal;
  std::vector<float> values(n);
  for (float& value : values) value = normal(generator) + shift;
  return values;
}

inline double squared(const float* a, const float* b, std::size_t d) {
  double sum = 0.0;
  for (std::size_t i = 0; i < d; ++i) {
    const double difference = static_cast<double>(a[i]) - static_cast<double>(b[i]);
    sum += difference * difference;
  }
  return sum;
}

}  // namespace delfsearch_test
