#include "delfsearch/coarse.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <stdexcept>

#include "delfsearch/cpu.hpp"
#include "delfsearch/parallel.hpp"
#include "delfsearch/quantizer.hpp"
#include "simd/centroid_kernels.hpp"
#include "simd/kdtree_kernels.hpp"
#include "simd/scan_kernels.hpp"

namespace delfsearch {

namespace {

// Fewer centroids are compared in float32 at once.
constexpr std::size_t kFewCentroids = 128;
constexpr std::size_t kTask = 256;       // rows
constexpr std::size_t kRows = 16;        // compared at a time
constexpr std::size_t kBlock = 16;       // centroids, interleaved by 4 dimensions
constexpr std::size_t kGroupBlocks = 8;  // of which lane by lane the least is kept
constexpr std::size_t kAtOnce = 8;       // candidates compared in float32
constexpr float kInfinity = std::numeric_limits<float>::infinity();

// Added to what is small, its sum is an integer, the nearest, whose lowest bits are the last ones
// of the sum.
constexpr double kShift = 6755399441055744.0;  // 1.5 * 2^52

std::int8_t lowest_byte(double shifted) {
  std::uint64_t bits;
  std::memcpy(&bits, &shifted, sizeof(bits));
  return static_cast<std::int8_t>(bits & 255);
}

float smallest(const float* values, std::size_t n) {
  float low[kBlock];
  centroids::kernels().least_of_lanes(values, 1, n / kBlock, low);
  return *std::min_element(low, low + kBlock);
}

}  // namespace

struct CoarseSearch::Candidate {
  float distance;
  std::uint32_t number;
  bool operator<(const Candidate& other) const {
    return distance != other.distance ? distance < other.distance : number < other.number;
  }
};

struct CoarseSearch::Scratch {
  std::vector<float> distances, values, least;
  std::vector<double> scaled;
  std::vector<std::int8_t> words;
  std::vector<kdtree::Query> queries;
  std::vector<float> kept;
  std::vector<std::uint32_t> places;
  std::vector<Candidate> candidates;
};

CoarseSearch::CoarseSearch(Span<const float> centroids, std::size_t d)
    : d_(d), values_(centroids.begin(), centroids.end()) {
  if (d == 0 || centroids.empty() || centroids.size() % d != 0)
    throw std::invalid_argument("centroids must be a (k, d) matrix, k and d at least 1");
  for (const float value : values_)
    if (!(std::abs(value) <= 2.0f * Quantizer::kMaxMagnitude))
      throw std::invalid_argument("centroids must be finite and not too large");
  packed_.assign((size() + centroids::kBlock - 1) / centroids::kBlock * centroids::kBlock * d,
                 0.0f);
  for (std::size_t c = 0; c < size(); ++c)
    for (std::size_t i = 0; i < d; ++i)
      packed_[(c / centroids::kBlock * d + i) * centroids::kBlock + c % centroids::kBlock] =
          values_[c * d + i];
  // Without vectors of integers float32 is faster.
  if (size() < kFewCentroids || simd() == Simd::kScalar) return;
  const Quantizer quantizer = fit_quantizer(values_, d, 1.0);
  const std::vector<std::uint8_t> codes = quantize(quantizer, values_);
  lower_.assign(quantizer.lower.begin(), quantizer.lower.end());
  step_.assign(quantizer.step.begin(), quantizer.step.end());
  middle_.resize(d);
  for (std::size_t i = 0; i < d; ++i) middle_[i] = lower_[i] + 128.0 * step_[i];
  const std::size_t in_group = kBlock * kGroupBlocks, d4 = (d + 3) / 4;
  step_.resize(4 * d4, 0.0);
  n_groups_ = (size() + in_group - 1) / in_group;
  codes_.assign(n_groups_ * in_group * d4 * 4, 0);
  norms_.assign(n_groups_ * in_group, kInfinity);  // nothing is nearest to what fills up
  for (std::size_t c = 0; c < size(); ++c) {
    double error = 0.0, norm = 0.0, length = 0.0;
    for (std::size_t i = 0; i < d; ++i) {
      const int code = codes[c * d + i];
      codes_[((c / kBlock * d4 + i / 4) * kBlock + c % kBlock) * 4 + i % 4] =
          static_cast<std::uint8_t>(code);
      const double off = lower_[i] + step_[i] * code - static_cast<double>(values_[c * d + i]);
      error += off * off;
      norm += step_[i] * (code - 128) * (step_[i] * (code - 128));
      length += static_cast<double>((code - 128) * (code - 128));
    }
    norms_[c] = static_cast<float>(norm);
    largest_error_ = std::max(largest_error_, std::sqrt(error));
    largest_code_ = std::max(largest_code_, std::sqrt(length));
  }
}

std::size_t CoarseSearch::n_bytes() const {
  return (values_.size() + packed_.size() + norms_.size()) * sizeof(float) + codes_.size();
}

// Sums of several go side by side: each waits for itself alone.
template <std::size_t kSums>
void CoarseSearch::measure_some(const float* x, Candidate* candidates, std::size_t n) const {
  const float* at[kSums];
  float sums[kSums] = {};
  for (std::size_t c = 0; c < kSums; ++c)
    at[c] = values_.data() + candidates[c < n ? c : 0].number * d_;
  for (std::size_t j = 0; j < d_; ++j)
    for (std::size_t c = 0; c < kSums; ++c) {
      const float difference = x[j] - at[c][j];
      sums[c] = sums[c] + difference * difference;
    }
  for (std::size_t c = 0; c < n; ++c) candidates[c].distance = sums[c];
}

void CoarseSearch::measure(const float* x, Candidate* candidates, std::size_t n) const {
  for (; n > kAtOnce; n -= kAtOnce, candidates += kAtOnce)
    measure_some<kAtOnce>(x, candidates, kAtOnce);
  if (n > kAtOnce / 2)
    measure_some<kAtOnce>(x, candidates, n);
  else if (n > kAtOnce / 4)
    measure_some<kAtOnce / 2>(x, candidates, n);
  else if (n > 0)
    measure_some<kAtOnce / 4>(x, candidates, n);
}

void CoarseSearch::nearest_of_all(const float* x, std::size_t n_nearest, Scratch& scratch,
                                  std::uint32_t* numbers) const {
  const std::size_t n_blocks = packed_.size() / (d_ * centroids::kBlock);
  scratch.distances.resize(n_blocks * centroids::kBlock);
  centroids::kernels().squared_distances({packed_.data(), nullptr, d_, n_blocks}, x,
                                         scratch.distances.data());
  // Those within a distance that n_nearest at least, and not many more, do not exceed.
  const kdtree::Kernels& kernels = kdtree::kernels();
  const float limit =
      kernels.kth_smallest(scratch.distances.data(), size(), n_nearest, n_nearest / 4);
  scratch.kept.resize(size() + scan::kRoom);
  scratch.places.resize(size() + scan::kRoom);
  const std::size_t n = kernels.keep(scratch.distances.data(), nullptr, size(), limit,
                                     scratch.kept.data(), scratch.places.data());
  if (n > scan::kMostRanked) {
    auto& all = scratch.candidates;
    all.resize(n);
    for (std::size_t i = 0; i < n; ++i) all[i] = {scratch.kept[i], scratch.places[i]};
    const auto end = all.begin() + static_cast<std::ptrdiff_t>(n_nearest);
    std::partial_sort(all.begin(), end, all.end());
    for (std::size_t i = 0; i < n_nearest; ++i) numbers[i] = all[i].number;
    return;
  }
  // Distances are not negative: their bits rise with them.
  std::uint32_t keys[scan::kMostRanked + scan::kRoom] = {}, ranks[scan::kMostRanked + scan::kRoom];
  std::memcpy(keys, scratch.kept.data(), n * sizeof(float));
  scan::kernels().ranks(keys, n, ranks);
  for (std::size_t i = 0; i < n; ++i)
    if (ranks[i] < n_nearest) numbers[ranks[i]] = scratch.places[i];
}

void CoarseSearch::nearest_rows(const float* x, std::size_t n_rows, std::size_t n_nearest,
                                Scratch& scratch, std::uint32_t* numbers) const {
  const std::size_t d4 = (d_ + 3) / 4, n_least = n_groups_ * kBlock;
  const std::size_t stride = n_least * kGroupBlocks;
  scratch.values.resize(kRows * stride);
  scratch.least.resize(n_least + 16);
  scratch.kept.resize(n_least + 16);
  scratch.places.resize(n_least + 16);
  scratch.words.assign(kRows * d4 * 4, 0);
  scratch.scaled.assign(4 * d4, 0.0);
  scratch.queries.assign(n_rows, {});
  double constant[kRows] = {}, slack[kRows] = {};
  for (std::size_t r = 0; r < n_rows; ++r) {
    // D = |row|^2 + norm - 2 unit sum word (code - 128), off by 2 unit (row - word) (code - 128).
    // Four sums of each kind go side by side; what fills up the last four is zero.
    double largest[4] = {}, squares[4] = {}, off[4] = {}, sum[4] = {};
    double* scaled = scratch.scaled.data();
    for (std::size_t i = 0; i < d_; ++i)
      scaled[i] = static_cast<double>(x[r * d_ + i]) - middle_[i];
    for (std::size_t i = 0; i < 4 * d4; i += 4)
      for (std::size_t j = 0; j < 4; ++j) {
        squares[j] += scaled[i + j] * scaled[i + j];
        scaled[i + j] *= step_[i + j];
        largest[j] = std::max(largest[j], std::abs(scaled[i + j]));
      }
    const double unit = std::max(*std::max_element(largest, largest + 4) / 127.0, 1e-300);
    const double each = 1.0 / unit;
    std::int8_t* words = scratch.words.data() + r * d4 * 4;
    for (std::size_t i = 0; i < 4 * d4; i += 4) {
      double shifted[4];
      for (std::size_t j = 0; j < 4; ++j) {
        const double exactly = scaled[i + j] * each;
        shifted[j] = exactly + kShift;
        const double word = shifted[j] - kShift;
        off[j] += (exactly - word) * (exactly - word);
        sum[j] += word;
      }
      for (std::size_t j = 0; j < 4; ++j) words[i + j] = lowest_byte(shifted[j]);
    }
    const auto total = [](const double (&of)[4]) { return of[0] + of[1] + of[2] + of[3]; };
    kdtree::Query& query = scratch.queries[r];
    query.high = words;
    query.high_offset = static_cast<std::int32_t>(128.0 * total(sum));
    query.rank_scale = static_cast<float>(2.0 * unit);
    constant[r] = total(squares);
    // And float32's rounding: of sums up to 255 * 127 d, and of norms.
    slack[r] =
        2.0 * unit * (std::sqrt(total(off)) * largest_code_ + 0.01 * static_cast<double>(d_)) +
        1e-5 * constant[r];
  }
  kdtree::kernels().rank(codes_.data(), norms_.data(), stride / kBlock, d4, scratch.queries.data(),
                         n_rows, scratch.values.data(), stride);
  auto& candidates = scratch.candidates;
  auto& places = scratch.places;
  for (std::size_t r = 0; r < n_rows; ++r) {
    const float* row = x + r * d_;
    float* least = scratch.least.data();
    const float* values = scratch.values.data() + r * stride;
    centroids::kernels().least_of_lanes(values, n_groups_, kGroupBlocks, least);
    // At least n_nearest centroids are within this; the farthest of them, exactly, sets the reach.
    const float first =
        n_nearest == 1 ? smallest(least, n_least)
                       : kdtree::kernels().kth_smallest(least, n_least, n_nearest, n_nearest / 2);
    candidates.clear();
    std::size_t measured = 0;
    const auto gather = [&](float from, float to) {
      const std::size_t n =
          kdtree::kernels().keep(least, nullptr, n_least, to, scratch.kept.data(), places.data());
      for (std::size_t i = 0; i < n; ++i)
        for (std::size_t b = 0; b < kGroupBlocks; ++b) {
          const std::size_t block = places[i] / kBlock * kGroupBlocks + b;
          const std::size_t c = block * kBlock + places[i] % kBlock;
          if (values[c] > from && values[c] <= to)
            candidates.push_back({0.0f, static_cast<std::uint32_t>(c)});
        }
      measure(row, candidates.data() + measured, candidates.size() - measured);
      measured = candidates.size();
    };
    gather(-kInfinity, first);
    const auto nth = candidates.begin() + static_cast<std::ptrdiff_t>(n_nearest - 1);
    std::nth_element(candidates.begin(), nth, candidates.end());
    const double reach = std::sqrt(static_cast<double>(nth->distance)) + largest_error_;
    const double limit = reach * reach * (1.0 + 1e-5) + slack[r] - constant[r];
    const float to = static_cast<float>(limit + std::abs(limit) * 1e-6);
    if (to > first) gather(first, to);
    const auto end = candidates.begin() + static_cast<std::ptrdiff_t>(n_nearest);
    std::partial_sort(candidates.begin(), end, candidates.end());
    for (std::size_t i = 0; i < n_nearest; ++i) numbers[r * n_nearest + i] = candidates[i].number;
  }
}

std::vector<std::uint32_t> CoarseSearch::nearest(Span<const float> X, std::size_t n_nearest,
                                                 int n_threads) const {
  if (X.size() % d_ != 0) throw std::invalid_argument("X must be (m, d)");
  if (n_nearest < 1 || n_nearest > size())
    throw std::invalid_argument("n_nearest must be 1 to the number of centroids");
  const std::size_t m = X.size() / d_;
  std::vector<std::uint32_t> numbers(m * n_nearest);
  // Where most are wanted, there is nothing to leave out.
  const bool by_bytes = n_groups_ > 0 && n_nearest <= n_groups_;
  parallel_for((m + kTask - 1) / kTask, n_threads, [&](std::size_t task, int) {
    const std::size_t end = std::min(m, (task + 1) * kTask);
    Scratch scratch;
    for (std::size_t i = task * kTask; i < end;) {
      const std::size_t n = by_bytes ? std::min(end - i, kRows) : 1;
      const float* x = X.data() + i * d_;
      if (by_bytes)
        nearest_rows(x, n, n_nearest, scratch, numbers.data() + i * n_nearest);
      else
        nearest_of_all(x, n_nearest, scratch, numbers.data() + i * n_nearest);
      i += n;
    }
  });
  return numbers;
}

}  // namespace delfsearch
