// The nearest of many centroids, exactly, by way of 8 bits: the cells of an inverted file.
//
// All centroids are compared in 8 bits first (the kernels of kdtree.hpp), the row in 8 bits of its
// own unit, the centroids in 8 bits a dimension. What either can be off is known: a
// centroid lies within e of what its 8 bits stand for, and the row's rounding is off by a vector
// whose length is known. Those that may be among the nearest are then compared in float32, sums of
// squared differences in the order of dimensions, ties to the lower number. So the result is that
// of comparing all in float32, the same bits on every instruction set. Cost of a row: k d products.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "delfsearch/span.hpp"

namespace delfsearch {

class CoarseSearch {
 public:
  // centroids (k, d) row-major, k, d >= 1, at most twice
  // Quantizer::kMaxMagnitude. Copied.
  CoarseSearch(Span<const float> centroids, std::size_t d);

  std::size_t size() const { return values_.size() / d_; }
  std::size_t dimension() const { return d_; }
  std::size_t n_bytes() const;  // in memory

  // (m, n_nearest) numbers of the nearest centroids of rows X (m, d), best first.
  std::vector<std::uint32_t> nearest(Span<const float> X, std::size_t n_nearest,
                                     int n_threads) const;

 private:
  struct Candidate;
  struct Scratch;

  std::size_t d_;
  std::vector<float> values_;
  std::vector<float> packed_;                  // the same in blocks, see simd/centroid_kernels.hpp
  std::size_t n_groups_ = 0;                   // 0: everything in float32
  std::vector<std::uint8_t> codes_;            // blocks of 16, interleaved by 4 dimensions
  std::vector<float> norms_;                   // seen from the middle of the range
  std::vector<double> lower_, step_, middle_;  // of each dimension; what code 128 stands for
  double largest_error_ = 0.0;                 // distance of a centroid to what its codes stand for
  double largest_code_ = 0.0;                  // length of codes - 128

  void nearest_of_all(const float* x, std::size_t n_nearest, Scratch& scratch,
                      std::uint32_t* numbers) const;
  void nearest_rows(const float* x, std::size_t n_rows, std::size_t n_nearest, Scratch& scratch,
                    std::uint32_t* numbers) const;
  template <std::size_t kSums>
  void measure_some(const float* x, Candidate* candidates, std::size_t n) const;
  void measure(const float* x, Candidate* candidates, std::size_t n) const;
};

}  // namespace delfsearch
