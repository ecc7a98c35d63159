// A set of centroids, packed for the kernels, and what is asked of it: which is nearest.
//
// Rows are compared after the centroids' mean is subtracted from both, so that vectors far from the
// origin lose no digits. The value compared is |c|^2 / 2 - x c in float32, summed in the order of
// dimensions: the same bits on every instruction set and for any number of threads. Cost of a
// row: k * d products.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "delfsearch/span.hpp"

namespace delfsearch {

class CentroidSet {
 public:
  CentroidSet() = default;
  // centroids is (k, d) row-major, k, d >= 1, finite.
  CentroidSet(Span<const float> centroids, std::size_t d);

  std::size_t size() const { return n_; }
  std::size_t dimension() const { return d_; }

  // The nearest centroid of each row, ties to the lower number. x: row i begins at i * stride.
  // squared_distances may be null.
  void nearest(const float* x, std::size_t stride, std::size_t n, std::uint32_t* numbers,
               float* squared_distances) const;

  // Squared distances of a row to all centroids; out has room for padded_size().
  void squared_distances(const float* x, float* out) const;
  std::size_t padded_size() const;

 private:
  std::size_t n_ = 0, d_ = 0;
  std::vector<float> mean_;
  std::vector<float> values_, half_norms_;
};

// Nearest centroids of all rows, over threads.
void assign_nearest(const CentroidSet& centroids, Span<const float> X, Span<std::uint32_t> numbers,
                    Span<float> squared_distances, int n_threads);

}  // namespace delfsearch
