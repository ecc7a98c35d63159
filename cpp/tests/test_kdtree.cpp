// The KD-tree beside nanoflann, an independent exact search over the decoded vectors, and from
// several threads at once.
#include <cmath>
#include <cstdint>
#include <limits>
#include <stdexcept>
#include <thread>
#include <vector>

#include "check.hpp"
#include "delfsearch/kdtree.hpp"

#ifdef DELFSEARCH_HAVE_NANOFLANN
#include <nanoflann.hpp>
#endif

using namespace delfsearch;

namespace {

// Uniform numbers that are the same everywhere.
struct Random {
  std::uint64_t state = 88172645463325252ull;
  float operator()() {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return static_cast<float>(state >> 40) / 16777216.0f;
  }
};

std::vector<float> clustered(std::size_t n, std::size_t d, Random& random) {
  std::vector<float> centres(20 * d);
  for (auto& x : centres) x = random();
  std::vector<float> X(n * d);
  for (std::size_t i = 0; i < n; ++i) {
    const auto c = static_cast<std::size_t>(random() * 20);
    for (std::size_t j = 0; j < d; ++j)
      X[i * d + j] =
          centres[c * d + j] + 0.3f * (random() - 0.5f) / (1 + 0.1f * static_cast<float>(j));
  }
  return X;
}

KdTreeView view_of(const KdTreeArrays& arrays, const Quantizer& quantizer, std::size_t n,
                   std::size_t leaf_size) {
  KdTreeView tree;
  tree.n = n;
  tree.leaf_size = leaf_size;
  tree.lower = quantizer.lower;
  tree.step = quantizer.step;
  tree.codes = arrays.codes;
  tree.norms = arrays.norms;
  tree.ids = arrays.ids;
  tree.leaf_codes = arrays.leaf_codes;
  tree.leaf_norms = arrays.leaf_norms;
  return tree;
}

double squared_distance(const float* a, const float* b, std::size_t d) {
  double sum = 0;
  for (std::size_t j = 0; j < d; ++j) {
    const double difference = static_cast<double>(a[j]) - static_cast<double>(b[j]);
    sum += difference * difference;
  }
  return sum;
}

#ifdef DELFSEARCH_HAVE_NANOFLANN
struct Cloud {
  const std::vector<float>& X;
  std::size_t d;
  std::size_t kdtree_get_point_count() const { return X.size() / d; }
  float kdtree_get_pt(std::size_t i, std::size_t j) const { return X[i * d + j]; }
  template <class Box>
  bool kdtree_get_bbox(Box&) const {
    return false;
  }
};
#endif

void test_exhaustive_search(std::size_t n, std::size_t d, std::size_t leaf_size, std::size_t k) {
  Random random;
  const auto X = clustered(n, d, random);
  const auto Q = clustered(50, d, random);
  const Quantizer quantizer = fit_quantizer(X, d, 0.9999);
  const auto codes = quantize(quantizer, X);
  const auto arrays = build_kdtree(codes, quantizer, leaf_size, Splits::kMeans, 2, 2);
  const KdTreeView tree = view_of(arrays, quantizer, n, leaf_size);
  tree.check();
  CHECK(unpack_codes(tree, 0, tree.n) == codes);
  CHECK(unpack_codes(tree, 3, 3).empty());
  const auto some = unpack_codes(tree, tree.n / 3, tree.n / 2);
  CHECK(some ==
        std::vector<std::uint8_t>(codes.begin() + static_cast<std::ptrdiff_t>(tree.n / 3 * d),
                                  codes.begin() + static_cast<std::ptrdiff_t>(tree.n / 2 * d)));
  CHECK_THROWS(unpack_codes(tree, 0, tree.n + 1), std::invalid_argument);
  CHECK_THROWS(unpack_codes(tree, 2, 1), std::invalid_argument);

  const auto found = search_kdtree(tree, Q, k, tree.n_leaves(), 1);
  const auto decoded = decode(quantizer, codes);
  double whole = 0;  // the query's 16 bits are of the whole range
  for (const float step : quantizer.step) whole += std::pow(128.0 * static_cast<double>(step), 2);
  for (std::size_t q = 0; q < 50; ++q) {
    for (std::size_t i = 0; i < k; ++i) {
      const auto id = static_cast<std::size_t>(found.ids[q * k + i]);
      const double D = static_cast<double>(found.squared_distances[q * k + i]);
      CHECK(std::fabs(D - squared_distance(&Q[q * d], &decoded[id * d], d)) < 1e-4 * whole);
      if (i > 0)
        CHECK(found.squared_distances[q * k + i - 1] <= found.squared_distances[q * k + i]);
    }
  }
#ifdef DELFSEARCH_HAVE_NANOFLANN
  const Cloud cloud{decoded, d};
  using Metric = nanoflann::L2_Simple_Adaptor<float, Cloud, double>;
  nanoflann::KDTreeSingleIndexAdaptor<Metric, Cloud, -1, std::size_t> oracle(
      static_cast<int>(d), cloud, nanoflann::KDTreeSingleIndexAdaptorParams(10));
  std::vector<std::size_t> ids(k);
  std::vector<double> distances(k);
  for (std::size_t q = 0; q < 50; ++q) {
    oracle.knnSearch(&Q[q * d], k, ids.data(), distances.data());
    for (std::size_t i = 0; i < k; ++i)
      CHECK(std::fabs(distances[i] - static_cast<double>(found.squared_distances[q * k + i])) <
            1e-4 * whole);
  }
#endif
}

void test_threads() {
  Random random;
  const std::size_t n = 4000, d = 40, k = 20;
  const auto X = clustered(n, d, random);
  const auto Q = clustered(300, d, random);
  const Quantizer quantizer = fit_quantizer(X, d, 0.9999);
  const auto codes = quantize(quantizer, X);
  const auto one = build_kdtree(codes, quantizer, 32, Splits::kMeans, 2, 1);
  const auto four = build_kdtree(codes, quantizer, 32, Splits::kMeans, 2, 4);
  CHECK(one.codes == four.codes && one.ids == four.ids && one.leaf_codes == four.leaf_codes);
  const KdTreeView tree = view_of(one, quantizer, n, 32);
  const auto expected = search_kdtree(tree, Q, k, 9, 1);
  std::vector<Neighbours> found(6);
  std::vector<std::thread> threads;
  for (std::size_t t = 0; t < found.size(); ++t)
    threads.emplace_back(
        [&, t] { found[t] = search_kdtree(tree, Q, k, 9, static_cast<int>(t % 3 + 1)); });
  for (auto& thread : threads) thread.join();
  for (const auto& result : found)
    CHECK(result.ids == expected.ids && result.squared_distances == expected.squared_distances);
}

void test_refusals() {
  const std::vector<float> X{0, 1, 2, 3, 4, 5};
  CHECK_THROWS(fit_quantizer(X, 4, 0.9999), std::invalid_argument);
  CHECK_THROWS(fit_quantizer(X, 0, 0.9999), std::invalid_argument);
  CHECK_THROWS(fit_quantizer(X, 2, 0.0), std::invalid_argument);
  CHECK_THROWS(fit_quantizer({}, 2, 0.5), std::invalid_argument);
  const Quantizer quantizer = fit_quantizer(X, 2, 1.0);
  const auto codes = quantize(quantizer, X);
  CHECK_THROWS(build_kdtree(codes, quantizer, 0, Splits::kAxis, 0, 1), std::invalid_argument);
  CHECK_THROWS(build_kdtree({}, quantizer, 8, Splits::kAxis, 0, 1), std::invalid_argument);
  for (const float bad : {std::nanf(""), -1.0f, 1e18f, std::numeric_limits<float>::infinity()}) {
    Quantizer damaged = quantizer;
    damaged.step[0] = bad;
    CHECK_THROWS(build_kdtree(codes, damaged, 16, Splits::kMeans, 2, 1), std::invalid_argument);
  }
  CHECK_THROWS(build_kdtree(codes, quantizer, 8, Splits::kMeans, -1, 1), std::invalid_argument);
  auto arrays = build_kdtree(codes, quantizer, 2, Splits::kAxis, 0, 1);
  const KdTreeView tree = view_of(arrays, quantizer, 3, 2);
  tree.check();
  CHECK_THROWS(search_kdtree(tree, X, 0, 1, 1), std::invalid_argument);
  CHECK_THROWS(search_kdtree(tree, X, 1, 0, 1), std::invalid_argument);
  CHECK(search_kdtree(tree, {}, 1, 1, 1).ids.empty());
  const auto padded = search_kdtree(tree, X, 5, 9, 1);
  CHECK(padded.ids[3] == -1 &&
        padded.squared_distances[3] == std::numeric_limits<float>::infinity());
  arrays.ids[0] = 7;
  CHECK_THROWS(view_of(arrays, quantizer, 3, 2).check(), std::invalid_argument);
}

// Any number of leaves visited, of those that hold something wanted.
void test_only_wanted_rows_are_found() {
  const std::size_t n = 3000, d = 12, leaf_size = 20, m = 50;
  Random random;
  const auto X = clustered(n, d, random);
  const auto Q = clustered(m, d, random);
  const Quantizer quantizer = fit_quantizer(X, d, 0.9999);
  const auto codes = quantize(quantizer, X);
  const auto arrays = build_kdtree(codes, quantizer, leaf_size, Splits::kMeans, 2, 2);
  const KdTreeView tree = view_of(arrays, quantizer, n, leaf_size);
  const auto all = search_kdtree(tree, Q, n, tree.n_leaves(), 1);
  for (const std::size_t step : {std::size_t{2}, std::size_t{100}, n, 2 * n}) {
    std::vector<std::uint8_t> wanted(n, 0);
    std::size_t n_wanted = 0;
    for (std::size_t id = step / 2; id < n; id += step, ++n_wanted) wanted[id] = 1;
    const KdTreeNorms norms = norms_of_wanted(tree, wanted);
    KdTreeView some = tree;
    some.norms = norms.norms;
    some.leaf_norms = norms.leaf_norms;
    const std::size_t k = 40;
    for (const std::size_t leaves : {n_wanted + 1, tree.n_leaves()}) {
      const auto found = search_kdtree(some, Q, k, leaves, 1);
      for (std::size_t q = 0; q < m; ++q) {
        std::size_t at = 0;
        for (std::size_t i = 0; i < n && at < std::min(k, n_wanted); ++i) {
          const std::int64_t id = all.ids[q * n + i];
          if (wanted[static_cast<std::size_t>(id)] == 0) continue;
          CHECK(found.ids[q * k + at] == id);
          CHECK(found.squared_distances[q * k + at] == all.squared_distances[q * n + i]);
          ++at;
        }
        for (; at < k; ++at) CHECK(found.ids[q * k + at] == -1);
      }
    }
    const auto one = search_kdtree(some, Q, 1, 1, 1);
    for (std::size_t q = 0; q < m; ++q) CHECK((one.ids[q] >= 0) == (n_wanted > 0));
  }
  CHECK_THROWS(norms_of_wanted(tree, std::vector<std::uint8_t>(n - 1)), std::invalid_argument);
}

}  // namespace

int main() {
  test_exhaustive_search(1500, 40, 64, 64);
  test_exhaustive_search(900, 7, 10, 5);
  test_exhaustive_search(333, 130, 16, 20);
  test_threads();
  test_refusals();
  test_only_wanted_rows_are_found();
  return delfsearch_test::report("kdtree");
}
