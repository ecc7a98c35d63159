#include "delfsearch/coarse.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <stdexcept>

#include "delfsearch/parallel.hpp"

namespace delfsearch {
namespace {

// Fewer centroids are compared in float32 at once.
constexpr std::size_t kFewCentroids = 128;
constexpr std::size_t kLeafSize = 256;
constexpr std::size_t kTask = 512;  // rows

struct Candidate {
  float distance;
  std::uint32_t number;
  bool operator<(const Candidate& other) const {
    return distance != other.distance ? distance < other.distance : number < other.number;
  }
};

}  // namespace

CoarseSearch::CoarseSearch(Span<const float> centroids, std::size_t d)
    : d_(d), values_(centroids.begin(), centroids.end()), exact_(centroids, d) {
  if (size() < kFewCentroids) return;
  quantizer_ = fit_quantizer(values_, d, 1.0);
  const std::vector<std::uint8_t> codes = quantize(quantizer_, values_);
  const std::vector<float> decoded = decode(quantizer_, codes);
  for (std::size_t c = 0; c < size(); ++c) {
    double sum = 0.0;
    for (std::size_t i = 0; i < d; ++i) {
      const double difference =
          static_cast<double>(values_[c * d + i]) - static_cast<double>(decoded[c * d + i]);
      sum += difference * difference;
    }
    largest_error_ = std::max(largest_error_, std::sqrt(sum));
  }
  // Every leaf is visited: how the tree is cut does not matter.
  tree_ = build_kdtree(codes, quantizer_, kLeafSize, Splits::kAxis, 0, 1);
  view_.n = size();
  view_.leaf_size = kLeafSize;
  view_.lower = quantizer_.lower;
  view_.step = quantizer_.step;
  view_.codes = tree_.codes;
  view_.norms = tree_.norms;
  view_.ids = tree_.ids;
  view_.leaf_codes = tree_.leaf_codes;
  view_.leaf_norms = tree_.leaf_norms;
}

void CoarseSearch::nearest_of_all(const float* x, std::size_t n_nearest,
                                  std::vector<float>& distances, std::uint32_t* numbers) const {
  distances.resize(exact_.padded_size());
  exact_.squared_distances(x, distances.data());
  std::vector<Candidate> all(size());
  for (std::size_t c = 0; c < size(); ++c) all[c] = {distances[c], static_cast<std::uint32_t>(c)};
  const auto end = all.begin() + static_cast<std::ptrdiff_t>(n_nearest);
  std::partial_sort(all.begin(), end, all.end());
  for (std::size_t i = 0; i < n_nearest; ++i) numbers[i] = all[i].number;
}

std::vector<std::uint32_t> CoarseSearch::nearest(Span<const float> X, std::size_t n_nearest,
                                                 int n_threads) const {
  if (X.size() % d_ != 0) throw std::invalid_argument("X must be (m, d)");
  if (n_nearest < 1 || n_nearest > size())
    throw std::invalid_argument("n_nearest must be 1 to the number of centroids");
  const std::size_t m = X.size() / d_;
  std::vector<std::uint32_t> numbers(m * n_nearest);
  const std::size_t n_candidates = n_nearest + std::max<std::size_t>(7, n_nearest);
  const bool by_bytes = size() >= kFewCentroids && n_candidates < size() / 4;
  parallel_for((m + kTask - 1) / kTask, n_threads, [&](std::size_t task, int) {
    const std::size_t begin = task * kTask, end = std::min(m, begin + kTask);
    std::vector<float> distances;
    if (!by_bytes) {
      for (std::size_t i = begin; i < end; ++i)
        nearest_of_all(X.data() + i * d_, n_nearest, distances, numbers.data() + i * n_nearest);
      return;
    }
    const Neighbours found =
        search_kdtree(view_, Span<const float>(X.data() + begin * d_, (end - begin) * d_),
                      n_candidates, view_.n_leaves(), 1);
    std::vector<Candidate> candidates(n_candidates);
    for (std::size_t i = begin; i < end; ++i) {
      const float* x = X.data() + i * d_;
      const std::size_t at = (i - begin) * n_candidates;
      double largest = 0.0, total = 0.0;  // of v in kdtree.hpp
      for (std::size_t j = 0; j < d_; ++j) {
        const double step = static_cast<double>(quantizer_.step[j]);
        const double middle = static_cast<double>(quantizer_.lower[j]) + 128.0 * step;
        const double v = std::abs((static_cast<double>(x[j]) - middle) * step);
        largest = std::max(largest, v);
        total += v;
      }
      for (std::size_t c = 0; c < n_candidates; ++c) {
        const auto number = static_cast<std::uint32_t>(found.ids[at + c]);
        const float* centroid = values_.data() + number * d_;
        float sum = 0.0f;
        for (std::size_t j = 0; j < d_; ++j) {
          const float difference = x[j] - centroid[j];
          sum = sum + difference * difference;
        }
        candidates[c] = {sum, number};
      }
      std::sort(candidates.begin(), candidates.end());
      // What the rounding of v can change, and float32 sums.
      const double unit = std::max(largest / 32512.0, total / 8388608.0);
      const double last = static_cast<double>(found.squared_distances[at + n_candidates - 1]);
      const double reach = static_cast<double>(candidates[n_nearest - 1].distance);
      const double slack = unit * 128.0 * static_cast<double>(d_) + 1e-5 * (last + reach);
      const double least = std::sqrt(std::max(0.0, last - slack)) - largest_error_;
      if (least > 0.0 && least * least > reach + slack)
        for (std::size_t p = 0; p < n_nearest; ++p)
          numbers[i * n_nearest + p] = candidates[p].number;
      else
        nearest_of_all(x, n_nearest, distances, numbers.data() + i * n_nearest);
    }
  });
  return numbers;
}

}  // namespace delfsearch
