// Seeded k-means: k-means++ on a sample (or given centroids), Lloyd's iterations with repair of
// empty clusters, or mini-batches (Sculley 2010).
//
// The result depends on the data, the options and the seed, but not on the number of threads or
// the instruction set: sums are taken in the order of rows, in double precision. A cluster that
// comes out empty takes the row that lies farthest from its centroid, as long as some row lies
// apart from its own; where there are fewer distinct rows than clusters the rest stay where they
// began. Cost of an iteration: n k d.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "delfsearch/span.hpp"

namespace delfsearch {

struct KMeansOptions {
  std::size_t k = 8;
  std::size_t max_iterations = 25;
  double tolerance = 1e-4;     // ends where the inertia falls by less than this share
  std::size_t batch_size = 0;  // rows of a mini-batch; 0: all rows, Lloyd's iterations
  std::uint64_t seed = 0;
  int n_threads = 1;
  Span<const float> start;  // (k, d) to begin with; empty: k-means++
};

struct KMeans {
  std::vector<float> centroids;  // (k, d)
  double inertia = 0.0;          // sum of squared distances at the last assignment
  std::size_t n_iterations = 0;
};

// X is (n, d) row-major, n >= k >= 1.
KMeans kmeans(Span<const float> X, std::size_t d, const KMeansOptions& options);

}  // namespace delfsearch
