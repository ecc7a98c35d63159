// Building the tree and its layout. A node is split at a rank, never at a value, so that all leaves
// but the last are full; what varies is the direction along which its rows are ordered.
#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>

#include "delfsearch/kdtree.hpp"
#include "delfsearch/parallel.hpp"
#include "kdtree_layout.hpp"
#include "kdtree_refine.hpp"

namespace delfsearch {
namespace {

constexpr std::size_t kSample = 256;  // rows of a node that its direction is learnt from
constexpr int kPowerSteps = 2;        // towards the principal axis, to start from
constexpr int kMeansSteps = 2;        // of balanced 2-means
constexpr float kLargestFloat = std::numeric_limits<float>::max();
constexpr std::size_t kNormsTogether = 4096;
constexpr std::size_t kParallelNodes = 64;  // subtrees handed to threads

// The order of the rows, being refined node by node. Each thread has its own scratch.
class Builder {
 public:
  Builder(const std::uint8_t* codes, const Quantizer& quantizer, std::size_t leaf_size,
          Splits splits, std::uint32_t* order)
      : codes_(codes),
        d_(quantizer.dimension()),
        step_(quantizer.step),
        leaf_size_(leaf_size),
        splits_(splits),
        order_(order),
        // Projections of codes must fit 29 bits and a sign.
        max_weight_(
            static_cast<float>(std::min<std::size_t>(4095, (std::size_t{1} << 29) / (255 * d_)))),
        direction_(d_),
        weights_(d_),
        mean_(d_) {
    // Steps relative to the largest: directions do not depend on the unit of the data, and no
    // product overflows.
    const float largest = *std::max_element(step_.begin(), step_.end());
    for (auto& step : step_) step = largest > 0 ? step / largest : 0.0f;
  }

  // Orders rows [begin, end) so that the lower half of the leaves comes first; returns where the
  // upper half begins.
  std::size_t split(std::size_t begin, std::size_t end) {
    const std::size_t n_leaves = (end - begin + leaf_size_ - 1) / leaf_size_;
    const std::size_t middle = begin + n_leaves / 2 * leaf_size_;
    choose_direction(begin, end);
    keys_.resize(end - begin);
    for (std::size_t i = begin; i < end; ++i) {
      const std::uint8_t* row = codes_ + order_[i] * d_;
      std::int32_t projection = 1 << 30;
      for (std::size_t j = 0; j < d_; ++j)
        projection += weights_[j] * static_cast<std::int16_t>(row[j]);
      keys_[i - begin] =
          static_cast<std::uint64_t>(static_cast<std::uint32_t>(projection)) << 32 | order_[i];
    }
    std::nth_element(keys_.begin(), keys_.begin() + static_cast<std::ptrdiff_t>(middle - begin),
                     keys_.end());
    for (std::size_t i = begin; i < end; ++i)
      order_[i] = static_cast<std::uint32_t>(keys_[i - begin]);
    return middle;
  }

  void split_fully(std::size_t begin, std::size_t end) {
    if (end - begin <= leaf_size_) {
      // Whatever nth_element left behind, a leaf's rows are in the order of their ids.
      std::sort(order_ + begin, order_ + end);
      return;
    }
    const std::size_t middle = split(begin, end);
    split_fully(begin, middle);
    split_fully(middle, end);
  }

 private:
  void choose_direction(std::size_t begin, std::size_t end) {
    read_sample(begin, end);
    std::vector<float> variance(d_, 0.0f);
    for (std::size_t row = 0; row < n_sample_; ++row)
      for (std::size_t j = 0; j < d_; ++j)
        variance[j] += sample_[row * d_ + j] * sample_[row * d_ + j];
    const auto widest = static_cast<std::size_t>(
        std::max_element(variance.begin(), variance.end()) - variance.begin());
    std::fill(direction_.begin(), direction_.end(), 0.0f);
    direction_[widest] = 1;
    if (splits_ == Splits::kMeans && variance[widest] > 0) {
      for (int i = 0; i < kPowerSteps; ++i) power_step();
      for (int i = 0; i < kMeansSteps; ++i) means_step();
    }
    // Ordering needs direction . (step * code): integer weights of the codes.
    float largest = 0;
    for (std::size_t j = 0; j < d_; ++j)
      largest = std::max(largest, std::fabs(direction_[j] * step_[j]));
    for (std::size_t j = 0; j < d_; ++j)
      weights_[j] = largest > 0 ? static_cast<std::int16_t>(std::nearbyint(
                                      direction_[j] * step_[j] / largest * max_weight_))
                                : std::int16_t{0};
  }

  // Rows at equal spacing, in units of the largest step, less their mean.
  void read_sample(std::size_t begin, std::size_t end) {
    const std::size_t n = end - begin;
    n_sample_ = std::min(n, kSample);
    sample_.resize(n_sample_ * d_);
    projections_.resize(n_sample_);
    std::fill(mean_.begin(), mean_.end(), 0.0f);
    for (std::size_t i = 0; i < n_sample_; ++i) {
      const std::uint8_t* row = codes_ + order_[begin + i * n / n_sample_] * d_;
      for (std::size_t j = 0; j < d_; ++j) {
        const float value = static_cast<float>(row[j]) * step_[j];
        sample_[i * d_ + j] = value;
        mean_[j] += value;
      }
    }
    for (std::size_t j = 0; j < d_; ++j) mean_[j] /= static_cast<float>(n_sample_);
    for (std::size_t i = 0; i < n_sample_; ++i)
      for (std::size_t j = 0; j < d_; ++j) sample_[i * d_ + j] -= mean_[j];
  }

  void project_sample() {
    for (std::size_t i = 0; i < n_sample_; ++i) {
      // Four sums: one would be a chain of dependent additions.
      float sums[4] = {0, 0, 0, 0};
      const float* row = sample_.data() + i * d_;
      std::size_t j = 0;
      for (; j + 4 <= d_; j += 4)
        for (std::size_t l = 0; l < 4; ++l) sums[l] += row[j + l] * direction_[j + l];
      for (; j < d_; ++j) sums[0] += row[j] * direction_[j];
      projections_[i] = (sums[0] + sums[1]) + (sums[2] + sums[3]);
    }
  }

  // direction = sum of weight(projection) * row, scaled to a largest component of 1.
  template <typename Weight>
  void update_direction(Weight weight) {
    std::vector<float>& sum = mean_;  // no longer needed
    std::fill(sum.begin(), sum.end(), 0.0f);
    for (std::size_t i = 0; i < n_sample_; ++i) {
      const float w = weight(projections_[i]);
      const float* row = sample_.data() + i * d_;
      for (std::size_t j = 0; j < d_; ++j) sum[j] += w * row[j];
    }
    float largest = 0;
    for (const float value : sum) largest = std::max(largest, std::fabs(value));
    if (!(largest > 0)) return;
    for (std::size_t j = 0; j < d_; ++j) direction_[j] = sum[j] / largest;
  }

  void power_step() {
    project_sample();
    update_direction([](float projection) { return projection; });
  }

  // The mean of the upper half less that of the lower: 2-means under the balance that a split has.
  void means_step() {
    project_sample();
    median_ = projections_;
    const auto middle = median_.begin() + static_cast<std::ptrdiff_t>(n_sample_ / 2);
    std::nth_element(median_.begin(), middle, median_.end());
    const float median = *middle;
    update_direction([median](float projection) { return projection < median ? -1.0f : 1.0f; });
  }

  const std::uint8_t* codes_;
  std::size_t d_;
  std::vector<float> step_;
  std::size_t leaf_size_;
  Splits splits_;
  std::uint32_t* order_;
  float max_weight_;
  std::vector<float> direction_;
  std::vector<std::int16_t> weights_;
  std::vector<float> mean_, sample_, projections_, median_;
  std::size_t n_sample_ = 0;
  std::vector<std::uint64_t> keys_;
};

// Written so that NaN fails. Norms must stay finite: +inf means a row that was removed.
void check_range(Span<const float> lower, Span<const float> step) {
  double largest_norm = 0;
  for (std::size_t j = 0; j < step.size(); ++j) {
    if (!(std::fabs(lower[j]) <= 2 * Quantizer::kMaxMagnitude))
      throw std::invalid_argument("lower must be finite");
    if (!(step[j] >= 0 && step[j] <= Quantizer::kMaxMagnitude))
      throw std::invalid_argument("step must be finite, not negative");
    largest_norm += 128.0 * 128.0 * static_cast<double>(step[j]) * static_cast<double>(step[j]);
  }
  if (!(largest_norm < static_cast<double>(kLargestFloat) / 4))
    throw std::invalid_argument("step is too large: squared distances would overflow");
}

}  // namespace

KdTreeArrays build_kdtree(Span<const std::uint8_t> codes, const Quantizer& quantizer,
                          std::size_t leaf_size, Splits splits, int refine_steps, int n_threads) {
  const std::size_t d = quantizer.dimension();
  if (d == 0 || d > kMaxDimension || quantizer.step.size() != d)
    throw std::invalid_argument("a quantizer must have 1 to 65536 dimensions");
  check_range(quantizer.lower, quantizer.step);
  if (codes.empty() || codes.size() % d != 0)
    throw std::invalid_argument("codes must be a multiple of the dimension and not empty");
  const std::size_t n = codes.size() / d;
  if (n > kMaxRows) throw std::invalid_argument("a tree holds at most 2^31 - 64 rows");
  if (leaf_size == 0) throw std::invalid_argument("leaf_size must be positive");
  if (refine_steps < 0) throw std::invalid_argument("refine_steps must not be negative");
  leaf_size = std::min(leaf_size, n);

  std::vector<std::uint32_t> order(n);
  for (std::size_t i = 0; i < n; ++i) order[i] = static_cast<std::uint32_t>(i);
  const Builder prototype(codes.data(), quantizer, leaf_size, splits, order.data());

  // Breadth first until there are enough nodes to share out, then each subtree on its own.
  std::vector<std::size_t> bounds{0, n};
  const auto threads = static_cast<std::size_t>(resolve_threads(n_threads));
  std::vector<Builder> builders(threads, prototype);
  while (threads > 1 && bounds.size() <= kParallelNodes) {
    std::vector<std::size_t> middles(bounds.size() - 1);
    parallel_for(middles.size(), n_threads, [&](std::size_t i, int thread) {
      middles[i] = bounds[i + 1] - bounds[i] <= leaf_size
                       ? bounds[i]
                       : builders[static_cast<std::size_t>(thread)].split(bounds[i], bounds[i + 1]);
    });
    std::vector<std::size_t> finer;
    for (std::size_t i = 0; i < middles.size(); ++i) {
      finer.push_back(bounds[i]);
      if (middles[i] > bounds[i]) finer.push_back(middles[i]);
    }
    finer.push_back(n);
    if (finer.size() == bounds.size()) break;
    bounds = std::move(finer);
  }
  parallel_for(bounds.size() - 1, n_threads, [&](std::size_t i, int thread) {
    builders[static_cast<std::size_t>(thread)].split_fully(bounds[i], bounds[i + 1]);
  });

  const kdtree::NormTable norm(quantizer);
  std::vector<float> norms(n);
  parallel_for((n + kNormsTogether - 1) / kNormsTogether, n_threads, [&](std::size_t task, int) {
    for (std::size_t i = task * kNormsTogether; i < std::min((task + 1) * kNormsTogether, n); ++i)
      norms[i] = norm(codes.data() + i * d);
  });
  kdtree::refine_leaves(codes, quantizer, norms, leaf_size, refine_steps, n_threads, order);

  KdTreeArrays arrays;
  const std::size_t n_leaves = (n + leaf_size - 1) / leaf_size;
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  arrays.codes.assign(padded_rows(n) * padded_dimension(d), 0);
  arrays.norms.assign(padded_rows(n), kInfinity);
  arrays.ids.resize(n * id_bytes(n));
  arrays.leaf_codes.assign(padded_rows(n_leaves) * padded_dimension(d), 0);
  arrays.leaf_norms.assign(padded_rows(n_leaves), kInfinity);
  // Leaves in runs of 16, so that no two threads write to one block of leaf codes. Blocks of rows
  // may be shared between leaves, but not their bytes.
  const std::size_t n_runs = padded_rows(n_leaves) / kKdTreeBlock;
  parallel_for(n_runs, n_threads, [&](std::size_t run, int) {
    std::vector<std::uint8_t> mean(d);
    for (std::size_t leaf = run * kKdTreeBlock; leaf < std::min((run + 1) * kKdTreeBlock, n_leaves);
         ++leaf) {
      const std::size_t begin = leaf * leaf_size, end = std::min(begin + leaf_size, n);
      std::vector<std::uint64_t> totals(d, 0);
      for (std::size_t place = begin; place < end; ++place) {
        const std::uint32_t id = order[place];
        const std::uint8_t* row = codes.data() + id * d;
        kdtree::put_row(arrays.codes.data(), d, place, row);
        arrays.norms[place] = norms[id];
        for (std::size_t b = 0; b < id_bytes(n); ++b)
          arrays.ids[place * id_bytes(n) + b] = static_cast<std::uint8_t>(id >> (8 * b));
        for (std::size_t j = 0; j < d; ++j) totals[j] += row[j];
      }
      const std::uint64_t count = end - begin;
      for (std::size_t j = 0; j < d; ++j)
        mean[j] = static_cast<std::uint8_t>((2 * totals[j] + count) / (2 * count));
      kdtree::put_row(arrays.leaf_codes.data(), d, leaf, mean.data());
      arrays.leaf_norms[leaf] = norm(mean.data());
    }
  });
  return arrays;
}

std::vector<std::uint8_t> unpack_codes(const KdTreeView& tree, std::size_t begin, std::size_t end) {
  if (begin > end || end > tree.n)
    throw std::invalid_argument("begin and end must be a range of rows");
  const std::size_t d = tree.dimension(), bytes = id_bytes(tree.n);
  std::vector<std::uint8_t> codes((end - begin) * d);
  std::size_t missing = end - begin;
  for (std::size_t place = 0; missing > 0 && place < tree.n; ++place) {
    const std::size_t id = read_id(tree, bytes, place);
    if (id < begin || id >= end) continue;
    --missing;
    const std::uint8_t* block = tree.codes.data() +
                                place / kKdTreeBlock * kKdTreeBlock * padded_dimension(d) +
                                place % kKdTreeBlock * 4;
    for (std::size_t j = 0; j < d; ++j) codes[(id - begin) * d + j] = block[j / 4 * 64 + j % 4];
  }
  return codes;
}

KdTreeNorms norms_of_wanted(const KdTreeView& tree, Span<const std::uint8_t> wanted) {
  if (wanted.size() != tree.n) throw std::invalid_argument("wanted must have a value for each row");
  KdTreeNorms made{{tree.norms.begin(), tree.norms.end()},
                   {tree.leaf_norms.begin(), tree.leaf_norms.end()}};
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  const std::size_t bytes = id_bytes(tree.n);
  for (std::size_t leaf = 0; leaf < tree.n_leaves(); ++leaf) {
    const std::size_t begin = leaf * tree.leaf_size;
    const std::size_t end = std::min(begin + tree.leaf_size, tree.n);
    float least = kInfinity;
    for (std::size_t place = begin; place < end; ++place) {
      float& norm = made.norms[place];
      norm = wanted[read_id(tree, bytes, place)] != 0 ? norm : kInfinity;
      least = std::min(least, norm);
    }
    if (least == kInfinity) made.leaf_norms[leaf] = kInfinity;
  }
  return made;
}

void KdTreeView::check() const {
  const auto require = [](bool good, const char* message) {
    if (!good) throw std::invalid_argument(message);
  };
  const std::size_t d = dimension();
  require(d >= 1 && d <= kMaxDimension, "the dimension must be 1 to 65536");
  require(n >= 1 && n <= kMaxRows, "the number of rows must be 1 to 2^31 - 64");
  require(leaf_size >= 1 && leaf_size <= n, "leaf_size must be 1 to the number of rows");
  require(step.size() == d, "lower and step must have one value per dimension");
  require(codes.size() == padded_rows(n) * padded_dimension(d), "codes have the wrong size");
  require(norms.size() == padded_rows(n), "norms have the wrong size");
  require(ids.size() == n * id_bytes(n), "ids have the wrong size");
  require(leaf_codes.size() == padded_rows(n_leaves()) * padded_dimension(d),
          "leaf_codes have the wrong size");
  require(leaf_norms.size() == padded_rows(n_leaves()), "leaf_norms have the wrong size");
  check_range(lower, step);
  // Comparisons that NaN fails.
  for (std::size_t i = 0; i < norms.size(); ++i)
    require(norms[i] >= 0 && (i < n || norms[i] > kLargestFloat), "norms are damaged");
  for (std::size_t i = 0; i < leaf_norms.size(); ++i)
    require(leaf_norms[i] >= 0 && (leaf_norms[i] <= kLargestFloat) == (i < n_leaves()),
            "leaf_norms are damaged");
  std::vector<bool> seen(n, false);
  const std::size_t bytes = id_bytes(n);
  for (std::size_t i = 0; i < n; ++i) {
    const std::size_t id = read_id(*this, bytes, i);
    require(id < n && !seen[id], "ids must be each row number once");
    seen[id] = true;
  }
}

}  // namespace delfsearch
