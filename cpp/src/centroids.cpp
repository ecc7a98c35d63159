#include "delfsearch/centroids.hpp"

#include <algorithm>
#include <limits>
#include <stdexcept>

#include "delfsearch/parallel.hpp"
#include "simd/centroid_kernels.hpp"

namespace delfsearch {
namespace {

using centroids::kBlock;
constexpr std::size_t kChunk = 256;  // rows shifted together; they stay in the first cache

std::size_t blocks_of(std::size_t n) { return (n + kBlock - 1) / kBlock; }

}  // namespace

CentroidSet::CentroidSet(Span<const float> given, std::size_t d) : d_(d) {
  if (d == 0 || given.empty() || given.size() % d != 0)
    throw std::invalid_argument("centroids must be a (k, d) matrix, k and d at least 1");
  n_ = given.size() / d;
  mean_.resize(d);
  for (std::size_t i = 0; i < d; ++i) {
    double sum = 0.0;
    for (std::size_t c = 0; c < n_; ++c) sum += static_cast<double>(given[c * d + i]);
    mean_[i] = static_cast<float>(sum / static_cast<double>(n_));
  }
  const std::size_t n_blocks = blocks_of(n_);
  values_.assign(n_blocks * kBlock * d, 0.0f);
  half_norms_.assign(n_blocks * kBlock, std::numeric_limits<float>::infinity());
  for (std::size_t c = 0; c < n_; ++c) {
    float norm = 0.0f;
    float* to = values_.data() + c / kBlock * d * kBlock + c % kBlock;
    for (std::size_t i = 0; i < d; ++i) {
      const float value = given[c * d + i] - mean_[i];
      to[i * kBlock] = value;
      norm = norm + value * value;
    }
    half_norms_[c] = 0.5f * norm;
  }
}

std::size_t CentroidSet::padded_size() const { return half_norms_.size(); }

void CentroidSet::nearest(const float* x, std::size_t stride, std::size_t n, std::uint32_t* numbers,
                          float* squared) const {
  const auto& kernels = centroids::kernels();
  const centroids::Packed packed{values_.data(), half_norms_.data(), d_, blocks_of(n_)};
  std::vector<float> shifted(std::min(n, kChunk) * d_), value(std::min(n, kChunk));
  for (std::size_t begin = 0; begin < n; begin += kChunk) {
    const std::size_t count = std::min(kChunk, n - begin);
    for (std::size_t r = 0; r < count; ++r)
      for (std::size_t i = 0; i < d_; ++i)
        shifted[r * d_ + i] = x[(begin + r) * stride + i] - mean_[i];
    kernels.nearest(packed, shifted.data(), d_, count, numbers + begin, value.data());
    if (!squared) continue;
    for (std::size_t r = 0; r < count; ++r) {
      float norm = 0.0f;
      for (std::size_t i = 0; i < d_; ++i) norm = norm + shifted[r * d_ + i] * shifted[r * d_ + i];
      squared[begin + r] = std::max(0.0f, norm + 2.0f * value[r]);
    }
  }
}

void CentroidSet::squared_distances(const float* x, float* out) const {
  std::vector<float> shifted(d_);
  for (std::size_t i = 0; i < d_; ++i) shifted[i] = x[i] - mean_[i];
  const centroids::Packed packed{values_.data(), half_norms_.data(), d_, blocks_of(n_)};
  centroids::kernels().squared_distances(packed, shifted.data(), out);
}

void assign_nearest(const CentroidSet& set, Span<const float> X, Span<std::uint32_t> numbers,
                    Span<float> squared, int n_threads) {
  const std::size_t d = set.dimension();
  if (d == 0 || X.size() % d != 0 || numbers.size() != X.size() / d ||
      (!squared.empty() && squared.size() != numbers.size()))
    throw std::invalid_argument("X must be (n, d), with n numbers and n or no distances");
  constexpr std::size_t kTask = 2048;
  const std::size_t n = numbers.size();
  parallel_for((n + kTask - 1) / kTask, n_threads, [&](std::size_t task, int) {
    const std::size_t begin = task * kTask, count = std::min(kTask, n - begin);
    set.nearest(X.data() + begin * d, d, count, numbers.data() + begin,
                squared.empty() ? nullptr : squared.data() + begin);
  });
}

}  // namespace delfsearch
