#include "delfsearch/kmeans.hpp"

#include <algorithm>
#include <cstring>
#include <limits>
#include <numeric>
#include <stdexcept>

#include "delfsearch/centroids.hpp"
#include "delfsearch/parallel.hpp"
#include "random.hpp"

namespace delfsearch {
namespace {

// Rows that k-means++ draws from, for each centroid that it draws.
constexpr std::size_t kSampleFactor = 8;
constexpr std::size_t kLeastSample = 4096;

// m distinct numbers below n, rising.
std::vector<std::size_t> draw_rows(std::size_t n, std::size_t m, Random& random) {
  std::vector<std::size_t> rows(n);
  std::iota(rows.begin(), rows.end(), std::size_t{0});
  if (m >= n) return rows;
  for (std::size_t i = 0; i < m; ++i) std::swap(rows[i], rows[i + random.below(n - i)]);
  rows.resize(m);
  std::sort(rows.begin(), rows.end());
  return rows;
}

// k-means++ (Arthur and Vassilvitskii 2007) on a sample of the rows.
std::vector<float> first_centroids(Span<const float> X, std::size_t d, std::size_t k,
                                   Random& random, int n_threads) {
  const std::size_t n = X.size() / d;
  const auto rows = draw_rows(n, std::max(kLeastSample, kSampleFactor * k), random);
  const std::size_t m = rows.size();
  // The sample takes the part of the centroids: chunks of it are compared with each new one.
  constexpr std::size_t kChunk = 2048;
  const std::size_t n_chunks = (m + kChunk - 1) / kChunk;
  std::vector<CentroidSet> chunks(n_chunks);
  parallel_for(n_chunks, n_threads, [&](std::size_t chunk, int) {
    const std::size_t begin = chunk * kChunk, end = std::min(m, begin + kChunk);
    std::vector<float> values((end - begin) * d);
    for (std::size_t i = begin; i < end; ++i)
      std::memcpy(values.data() + (i - begin) * d, X.data() + rows[i] * d, d * sizeof(float));
    chunks[chunk] = CentroidSet(values, d);
  });
  std::vector<float> centroids(k * d);
  std::vector<float> nearest(n_chunks * kChunk, std::numeric_limits<float>::infinity());
  std::vector<double> weights(n_chunks);
  std::size_t chosen = random.below(m);
  // Small samples are done sooner than threads start.
  const int threads = m * d >= (std::size_t{1} << 19) ? n_threads : 1;
  for (std::size_t c = 0;; ++c) {
    const float* centroid = X.data() + rows[chosen] * d;
    std::memcpy(centroids.data() + c * d, centroid, d * sizeof(float));
    if (c + 1 == k) return centroids;
    parallel_for(n_chunks, threads, [&](std::size_t chunk, int) {
      float distances[kChunk];
      chunks[chunk].squared_distances(centroid, distances);
      double sum = 0.0;
      float* least = nearest.data() + chunk * kChunk;
      for (std::size_t i = 0; i < chunks[chunk].size(); ++i) {
        least[i] = std::min(least[i], distances[i]);
        sum += static_cast<double>(least[i]);
      }
      weights[chunk] = sum;
    });
    double total = 0.0;
    for (const double weight : weights) total += weight;
    if (!(total > 0.0)) {  // no row is apart from all centroids
      chosen = random.below(m);
      continue;
    }
    double left = random.uniform() * total;
    std::size_t chunk = 0;
    while (chunk + 1 < n_chunks && left >= weights[chunk]) left -= weights[chunk++];
    const std::size_t last = std::min(m, (chunk + 1) * kChunk) - 1;
    chosen = chunk * kChunk;
    while (chosen < last && left >= static_cast<double>(nearest[chosen]))
      left -= static_cast<double>(nearest[chosen++]);
  }
}

// Rows by centroid: those of c are order[starts[c]] ... order[starts[c + 1] - 1], rising.
struct Groups {
  std::vector<std::size_t> starts, order;
};

Groups group(const std::vector<std::uint32_t>& labels, std::size_t k) {
  Groups groups{std::vector<std::size_t>(k + 1), std::vector<std::size_t>(labels.size())};
  for (const std::uint32_t label : labels) ++groups.starts[label + 1];
  std::partial_sum(groups.starts.begin(), groups.starts.end(), groups.starts.begin());
  std::vector<std::size_t> at(groups.starts.begin(), groups.starts.end() - 1);
  for (std::size_t i = 0; i < labels.size(); ++i) groups.order[at[labels[i]]++] = i;
  return groups;
}

// Gives each empty cluster the farthest row that is not alone in its own.
void repair(std::vector<std::uint32_t>& labels, std::vector<float>& distances, std::size_t k) {
  std::vector<std::size_t> sizes(k);
  for (const std::uint32_t label : labels) ++sizes[label];
  std::vector<std::uint32_t> empty;
  for (std::size_t c = 0; c < k; ++c)
    if (sizes[c] == 0) empty.push_back(static_cast<std::uint32_t>(c));
  if (empty.empty()) return;
  std::vector<std::size_t> rows(labels.size());
  std::iota(rows.begin(), rows.end(), std::size_t{0});
  const auto farther = [&](std::size_t a, std::size_t b) {
    return distances[a] != distances[b] ? distances[a] > distances[b] : a < b;
  };
  // Twice as many as needed, as some may be alone; then all, should that not do.
  std::size_t sorted = std::min(rows.size(), 2 * empty.size());
  std::partial_sort(rows.begin(), rows.begin() + static_cast<std::ptrdiff_t>(sorted), rows.end(),
                    farther);
  std::size_t next = 0;
  for (const std::uint32_t c : empty) {
    for (;; ++next) {
      if (next == sorted && sorted < rows.size()) {
        std::sort(rows.begin() + static_cast<std::ptrdiff_t>(sorted), rows.end(), farther);
        sorted = rows.size();
      }
      if (next == sorted || !(distances[rows[next]] > 0.0f)) return;
      if (sizes[labels[rows[next]]] > 1) break;
    }
    const std::size_t row = rows[next++];
    --sizes[labels[row]];
    labels[row] = c;
    distances[row] = 0.0f;
    sizes[c] = 1;
  }
}

void take_means(Span<const float> X, std::size_t d, const std::vector<std::uint32_t>& labels,
                std::vector<float>& centroids, int n_threads) {
  const std::size_t k = centroids.size() / d;
  const Groups groups = group(labels, k);
  constexpr std::size_t kTask = 16;
  parallel_for((k + kTask - 1) / kTask, n_threads, [&](std::size_t task, int) {
    std::vector<double> sums(d);
    for (std::size_t c = task * kTask; c < std::min(k, (task + 1) * kTask); ++c) {
      const std::size_t begin = groups.starts[c], end = groups.starts[c + 1];
      if (begin == end) continue;
      std::fill(sums.begin(), sums.end(), 0.0);
      for (std::size_t i = begin; i < end; ++i) {
        const float* row = X.data() + groups.order[i] * d;
        for (std::size_t j = 0; j < d; ++j) sums[j] += static_cast<double>(row[j]);
      }
      for (std::size_t j = 0; j < d; ++j)
        centroids[c * d + j] = static_cast<float>(sums[j] / static_cast<double>(end - begin));
    }
  });
}

double sum_of(const std::vector<float>& values) {
  double sum = 0.0;
  for (const float value : values) sum += static_cast<double>(value);
  return sum;
}

KMeans lloyd(Span<const float> X, std::size_t d, const KMeansOptions& options,
             std::vector<float> centroids) {
  const std::size_t n = X.size() / d;
  std::vector<std::uint32_t> labels(n), before;
  std::vector<float> distances(n);
  KMeans result;
  double inertia = 0.0;
  for (;;) {
    assign_nearest(CentroidSet(centroids, d), X, labels, distances, options.n_threads);
    const double now = sum_of(distances);
    const bool done = result.n_iterations == options.max_iterations || labels == before ||
                      (result.n_iterations > 0 && inertia - now <= options.tolerance * inertia);
    result.inertia = now;
    if (done) break;
    inertia = now;
    before = labels;
    repair(labels, distances, options.k);
    take_means(X, d, labels, centroids, options.n_threads);
    ++result.n_iterations;
  }
  result.centroids = std::move(centroids);
  return result;
}

KMeans mini_batches(Span<const float> X, std::size_t d, const KMeansOptions& options,
                    std::vector<float> centroids, Random& random) {
  const std::size_t n = X.size() / d, m = std::min(n, options.batch_size);
  std::vector<float> batch(m * d), distances(m);
  std::vector<std::uint32_t> labels(m);
  std::vector<double> seen(options.k);
  KMeans result;
  for (; result.n_iterations < options.max_iterations; ++result.n_iterations) {
    for (std::size_t i = 0; i < m; ++i)
      std::memcpy(batch.data() + i * d, X.data() + random.below(n) * d, d * sizeof(float));
    assign_nearest(CentroidSet(centroids, d), batch, labels, distances, options.n_threads);
    result.inertia = sum_of(distances) * static_cast<double>(n) / static_cast<double>(m);
    // A cluster is empty only once it had its chance: all rows drawn about once.
    if ((result.n_iterations + 1) * m >= n) {
      std::vector<std::uint32_t> repaired = labels;
      repair(repaired, distances, options.k);
      for (std::size_t i = 0; i < m; ++i)
        if (seen[repaired[i]] == 0.0) labels[i] = repaired[i];
    }
    const Groups groups = group(labels, options.k);
    for (std::size_t c = 0; c < options.k; ++c) {
      const std::size_t begin = groups.starts[c], end = groups.starts[c + 1];
      if (begin == end) continue;
      const double count = static_cast<double>(end - begin);
      seen[c] += count;
      for (std::size_t j = 0; j < d; ++j) {
        double sum = 0.0;
        for (std::size_t i = begin; i < end; ++i)
          sum += static_cast<double>(batch[groups.order[i] * d + j]);
        const double old = static_cast<double>(centroids[c * d + j]);
        centroids[c * d + j] = static_cast<float>(old + (sum - count * old) / seen[c]);
      }
    }
  }
  result.centroids = std::move(centroids);
  return result;
}

}  // namespace

KMeans kmeans(Span<const float> X, std::size_t d, const KMeansOptions& options) {
  if (d == 0 || X.size() % d != 0) throw std::invalid_argument("X must be (n, d), d at least 1");
  const std::size_t n = X.size() / d;
  if (options.k < 1 || n < options.k)
    throw std::invalid_argument("k must be at least 1 and at most the number of rows");
  if (!(options.tolerance >= 0.0)) throw std::invalid_argument("tolerance must not be negative");
  if (!options.start.empty() && options.start.size() != options.k * d)
    throw std::invalid_argument("start must be (k, d)");
  Random random(options.seed);
  std::vector<float> centroids(options.start.begin(), options.start.end());
  if (centroids.empty()) centroids = first_centroids(X, d, options.k, random, options.n_threads);
  if (options.batch_size > 0) return mini_batches(X, d, options, std::move(centroids), random);
  return lloyd(X, d, options, std::move(centroids));
}

}  // namespace delfsearch
