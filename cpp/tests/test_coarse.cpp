// The nearest cells by way of 8 bits, and features found again, against plain searches.
#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>
#include <stdexcept>
#include <vector>

#include "check.hpp"
#include "delfsearch/coarse.hpp"
#include "delfsearch/rematch.hpp"

using namespace delfsearch;

namespace {

// In float32, in the order of dimensions: what CoarseSearch promises.
float squared(const float* a, const float* b, std::size_t d) {
  float sum = 0.0f;
  for (std::size_t i = 0; i < d; ++i) {
    const float difference = a[i] - b[i];
    sum = sum + difference * difference;
  }
  return sum;
}

std::vector<std::uint32_t> nearest(const std::vector<float>& centroids, const std::vector<float>& X,
                                   std::size_t d, std::size_t n_nearest) {
  std::vector<std::uint32_t> found;
  const std::size_t n = centroids.size() / d;
  for (std::size_t i = 0; i < X.size() / d; ++i) {
    std::vector<std::uint32_t> order(n);
    std::vector<float> distances(n);
    std::iota(order.begin(), order.end(), 0u);
    for (std::size_t c = 0; c < n; ++c)
      distances[c] = squared(X.data() + i * d, centroids.data() + c * d, d);
    std::sort(order.begin(), order.end(), [&](std::uint32_t a, std::uint32_t b) {
      return distances[a] != distances[b] ? distances[a] < distances[b] : a < b;
    });
    found.insert(found.end(), order.begin(),
                 order.begin() + static_cast<std::ptrdiff_t>(n_nearest));
  }
  return found;
}

// What rows and centroids are like: the ways in which 8 bits could mislead.
enum class Kind { kPlain, kScaled, kConstant, kTwins, kFar, kTiny, kEqual };

std::vector<float> values(std::size_t n, std::size_t d, Kind kind, unsigned seed) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal;
  std::vector<float> x(n * d);
  for (std::size_t i = 0; i < n; ++i)
    for (std::size_t j = 0; j < d; ++j) {
      float value = normal(generator);
      if (kind == Kind::kScaled) value *= std::pow(10.0f, 3.0f - static_cast<float>(j));
      if (kind == Kind::kConstant && j % 2 == 0) value = 7.0f;
      if (kind == Kind::kFar && i % 50 == 0) value *= 1e4f;
      if (kind == Kind::kTiny) value = 1e6f + value;
      if (kind == Kind::kEqual) value = 1.0f;
      x[i * d + j] = value;
    }
  if (kind == Kind::kTwins)  // near or equal to the one before
    for (std::size_t i = 1; i < n; i += 2)
      for (std::size_t j = 0; j < d; ++j)
        x[i * d + j] = x[(i - 1) * d + j] + (i % 4 == 1 && j == 0 ? 1e-6f : 0.0f);
  return x;
}

void cells_are_the_nearest() {
  for (const Kind kind : {Kind::kPlain, Kind::kScaled, Kind::kConstant, Kind::kTwins, Kind::kFar,
                          Kind::kTiny, Kind::kEqual})
    for (const std::size_t d : {1, 3, 8, 41})
      for (const std::size_t n : {1, 127, 128, 700}) {
        const auto centroids = values(n, d, kind, 1);
        auto rows = values(37, d, kind, 2);
        // Some rows are centroids, some lie far outside of all.
        std::copy_n(centroids.begin(), d, rows.begin());
        for (std::size_t j = 0; j < d; ++j) rows[d + j] = 1e9f;
        const CoarseSearch search(centroids, d);
        CHECK(search.size() == n && search.dimension() == d);
        for (const std::size_t n_nearest : {1, 2, 5, 6, 64, 700}) {
          if (n_nearest > n) continue;
          const auto expected = nearest(centroids, rows, d, n_nearest);
          const auto found = search.nearest(rows, n_nearest, 1);
          if (found != expected)
            std::printf("kind %d, d %zu, %zu centroids, %zu nearest\n", static_cast<int>(kind), d,
                        n, n_nearest);
          CHECK(found == expected);
          CHECK(search.nearest(rows, n_nearest, 3) == expected);
        }
      }
  const CoarseSearch search(std::vector<float>(256 * 2, 0.5f), 2);
  CHECK(search.nearest({}, 1, 1).empty());
  CHECK_THROWS(search.nearest(std::vector<float>(3), 1, 1), std::invalid_argument);
  CHECK_THROWS(search.nearest(std::vector<float>(2), 0, 1), std::invalid_argument);
  CHECK_THROWS(search.nearest(std::vector<float>(2), 257, 1), std::invalid_argument);
}

void features_are_found_again() {
  const std::size_t d = 5, m = 4;
  std::mt19937 generator(3);
  std::vector<std::uint8_t> codes(60 * d);
  for (auto& code : codes) code = static_cast<std::uint8_t>(generator() % 8);  // ties
  const Quantizer quantizer{std::vector<float>(d, -1.0f), std::vector<float>(d, 0.25f)};
  const auto rows = decode(quantizer, codes);
  const auto queries = values(m, d, Kind::kPlain, 4);
  const std::vector<std::int64_t> offsets = {0, 1, 30, 60};
  std::vector<std::int32_t> query_of;
  std::vector<std::int64_t> begin, end;
  for (const std::size_t photo : {2, 0, 1})
    for (std::int32_t q = 0; q < static_cast<std::int32_t>(m); ++q)
      for (std::int64_t t = 0;
           t < std::min<std::int64_t>(q + 1, offsets[photo + 1] - offsets[photo]); ++t) {
        query_of.push_back(q);
        begin.push_back(offsets[photo]);
        end.push_back(offsets[photo + 1]);
      }
  const Rematched found = rematch(quantizer, codes, queries, query_of, begin, end, 1);
  CHECK(found.rows == rematch(quantizer, codes, queries, query_of, begin, end, 3).rows);
  for (std::size_t i = 0; i < query_of.size();) {
    const auto first = static_cast<std::size_t>(begin[i]);
    std::vector<double> squares;
    for (std::size_t row = first; row < static_cast<std::size_t>(end[i]); ++row) {
      double sum = 0.0;
      for (std::size_t j = 0; j < d; ++j) {
        const double off =
            static_cast<double>(rows[row * d + j]) -
            static_cast<double>(queries[static_cast<std::size_t>(query_of[i]) * d + j]);
        sum += off * off;
      }
      squares.push_back(sum);
    }
    std::vector<double> sorted = squares;
    std::sort(sorted.begin(), sorted.end());
    std::vector<std::int64_t> seen;
    for (std::size_t t = 0, of = i;
         i < query_of.size() && query_of[i] == query_of[of] && begin[i] == begin[of]; ++i, ++t) {
      const auto row = static_cast<std::size_t>(found.rows[i]);
      CHECK(row >= first && row < first + squares.size());
      CHECK(std::abs(squares[row - first] - sorted[t]) < 1e-5);
      CHECK(std::abs(static_cast<double>(found.squared_distances[i]) - sorted[t]) < 1e-5);
      CHECK(std::find(seen.begin(), seen.end(), found.rows[i]) == seen.end());
      seen.push_back(found.rows[i]);
    }
  }
}

}  // namespace

int main() {
  cells_are_the_nearest();
  features_are_found_again();
  return delfsearch_test::report("test_coarse");
}
