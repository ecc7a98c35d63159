// The nearest of many centroids, exactly, by way of 8 bits: the cells of an inverted file.
//
// All centroids are compared in 8 bits a dimension (kdtree.hpp, every leaf visited); the best few
// of these are compared in float32. With e the largest distance of a centroid to what its 8 bits
// stand for, a centroid left out at distance D lies no nearer than D - e: where that does not
// exclude it, the row is compared with all centroids in float32. So the result is that of comparing
// all in float32, sums of squared differences in the order of dimensions, ties to the lower number:
// the same bits on every instruction set. Cost of a row: k d products of 8 bits, a third of the
// time of float32.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "delfsearch/centroids.hpp"
#include "delfsearch/kdtree.hpp"
#include "delfsearch/quantizer.hpp"
#include "delfsearch/span.hpp"

namespace delfsearch {

class CoarseSearch {
 public:
  // centroids (k, d) row-major, k, d >= 1, at most Quantizer::kMaxMagnitude. Copied.
  CoarseSearch(Span<const float> centroids, std::size_t d);
  CoarseSearch(const CoarseSearch&) = delete;  // the view is into the object
  CoarseSearch& operator=(const CoarseSearch&) = delete;

  std::size_t size() const { return exact_.size(); }
  std::size_t dimension() const { return d_; }

  // (m, n_nearest) numbers of the nearest centroids of rows X (m, d), best first.
  std::vector<std::uint32_t> nearest(Span<const float> X, std::size_t n_nearest,
                                     int n_threads) const;

 private:
  std::size_t d_;
  std::vector<float> values_;
  CentroidSet exact_;
  Quantizer quantizer_;
  KdTreeArrays tree_;
  KdTreeView view_;
  double largest_error_ = 0.0;  // distance, not squared

  void nearest_of_all(const float* x, std::size_t n_nearest, std::vector<float>& distances,
                      std::uint32_t* numbers) const;
};

}  // namespace delfsearch
