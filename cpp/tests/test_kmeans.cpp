// Nearest centroids and k-means against slow searches that share no code with them.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <random>
#include <set>
#include <stdexcept>
#include <vector>

#include "check.hpp"
#include "delfsearch/centroids.hpp"
#include "delfsearch/kmeans.hpp"
#include "simd/centroid_kernels.hpp"
#include "vectors.hpp"

using namespace delfsearch;
using delfsearch_test::gaussian;
using delfsearch_test::squared;

namespace {

void nearest_is_nearest() {
  for (const std::size_t d : {1, 3, 4, 40})
    for (const std::size_t k : {1, 5, 32, 33, 100}) {
      // Far from the origin, where a careless expansion of the square loses everything.
      const auto centroids = gaussian(k * d, 1, 1000.0f), X = gaussian(37 * d, 2, 1000.0f);
      std::vector<std::uint32_t> numbers(37);
      std::vector<float> distances(37);
      assign_nearest(CentroidSet(centroids, d), X, numbers, distances, 2);
      for (std::size_t i = 0; i < 37; ++i) {
        double least = std::numeric_limits<double>::infinity();
        for (std::size_t c = 0; c < k; ++c)
          least = std::min(least, squared(X.data() + i * d, centroids.data() + c * d, d));
        const double got = squared(X.data() + i * d, centroids.data() + numbers[i] * d, d);
        CHECK(got <= least * (1 + 1e-4) + 1e-4);
        CHECK(std::abs(static_cast<double>(distances[i]) - got) <= 1e-3 * (1 + got));
      }
    }
  // Of equal centroids the lower number.
  const std::vector<float> same(50 * 4, 2.5f), x(4, 1.0f);
  std::uint32_t number = 99;
  CentroidSet(same, 4).nearest(x.data(), 4, 1, &number, nullptr);
  CHECK(number == 0);
}

void kmeans_finds_planted_clusters() {
  const std::size_t k = 20, d = 6, n = 2000;
  const auto centres = gaussian(k * d, 3);
  auto X = gaussian(n * d, 4);
  for (std::size_t i = 0; i < n; ++i)
    for (std::size_t j = 0; j < d; ++j)
      X[i * d + j] = 0.01f * X[i * d + j] + 10.0f * centres[i % k * d + j];
  KMeansOptions options;
  options.k = k;
  options.seed = 5;
  options.n_threads = 3;
  const KMeans found = kmeans(X, d, options);
  CHECK(found.inertia / n < 2 * d * 1e-4);
  options.n_threads = 1;
  CHECK(kmeans(X, d, options).centroids == found.centroids);
  options.batch_size = 500;
  options.max_iterations = 60;
  CHECK(kmeans(X, d, options).inertia / n < 2 * d * 1e-4);
}

void kmeans_of_awkward_data() {
  KMeansOptions options;
  options.k = 7;
  // Three distinct rows, seven clusters.
  std::vector<float> X;
  for (int i = 0; i < 30; ++i) X.push_back(static_cast<float>(i % 3));
  const KMeans few = kmeans(X, 1, options);
  CHECK(few.inertia == 0.0);
  for (const float c : few.centroids) CHECK(c == 0.0f || c == 1.0f || c == 2.0f);
  // As many rows as clusters: each is one.
  const auto own = gaussian(7 * 3, 6);
  CHECK(kmeans(own, 3, options).inertia < 1e-10);
  // A far row that no sample may miss: repair gives every cluster a row.
  std::vector<float> skewed(5000, 0.0f);
  for (int i = 0; i < 6; ++i) skewed[static_cast<std::size_t>(i) * 800] = 100.0f * (i + 1);
  CHECK(kmeans(skewed, 1, options).inertia == 0.0);
  // Centroids to begin with, and to end with where no iteration follows.
  options.start = own;
  options.max_iterations = 0;
  const auto moved = gaussian(40 * 3, 14);
  CHECK(kmeans(moved, 3, options).centroids == own);
  options.max_iterations = 25;
  const KMeans onward = kmeans(moved, 3, options);
  CHECK(onward.n_iterations > 0 && onward.centroids != own);
  CHECK_THROWS(kmeans(moved, 2, options), std::invalid_argument);
  options.start = {};
  options.k = 31;
  CHECK_THROWS(kmeans(X, 1, options), std::invalid_argument);
}

}  // namespace

int main() {
  nearest_is_nearest();
  kmeans_finds_planted_clusters();
  kmeans_of_awkward_data();
  return delfsearch_test::report("test_kmeans");
}
