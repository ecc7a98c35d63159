// Searches of posting lists against comparing all codes.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <random>
#include <set>
#include <stdexcept>
#include <utility>
#include <vector>

#include "check.hpp"
#include "delfsearch/aligned.hpp"
#include "delfsearch/centroids.hpp"
#include "delfsearch/coarse.hpp"
#include "delfsearch/inverted_file.hpp"
#include "delfsearch/kmeans.hpp"
#include "delfsearch/lopq.hpp"
#include "simd/scan_kernels.hpp"
#include "vectors.hpp"

using namespace delfsearch;
using delfsearch_test::gaussian;
using delfsearch_test::squared;

namespace {

struct Built {
  LopqArrays arrays;
  std::vector<std::uint32_t> lists;
  std::vector<std::uint8_t> numbers;
  InvertedFileArrays filled;
  std::vector<std::uint64_t> order;  // place -> row, the largest number for padding
  std::size_t leaf_blocks;

  InvertedFileView view() const {
    InvertedFileView file;
    file.quantizer = arrays.view();
    file.first_block = filled.first_block;
    file.sizes = filled.sizes;
    file.blocks = filled.blocks;
    file.leaf_blocks = leaf_blocks;
    file.first_leaf = filled.first_leaf;
    file.present = filled.present;
    return file;
  }
};

Built build(const std::vector<float>& X, std::size_t d, std::size_t n_lists, ProductCode code,
            LopqOptions::Rotation rotation, std::size_t leaf_blocks, bool rounded = false) {
  Built built;
  built.leaf_blocks = leaf_blocks;
  const std::size_t n = X.size() / d;
  KMeansOptions coarse;
  coarse.k = n_lists;
  const auto centroids = kmeans(X, d, coarse).centroids;
  built.lists.resize(n);
  assign_nearest(CentroidSet(centroids, d), X, built.lists, {}, 1);
  LopqOptions options;
  options.code = code;
  options.rotation = rotation;
  options.rounded = rounded;
  options.min_rotation_rows = 60;
  options.min_codebook_rows = 100;
  built.arrays = train_lopq(X, built.lists, centroids, d, options);
  built.arrays.view().check();
  built.numbers = encode(built.arrays.view(), X, built.lists, 2);
  std::vector<std::uint32_t> rows(n);
  std::iota(rows.begin(), rows.end(), 0u);
  built.filled = fill_lists(built.arrays.view(), built.numbers, built.lists, rows, leaf_blocks, 2);
  built.order.assign(built.filled.first_block.back() * kCodeBlock, ~std::uint64_t{0});
  for (std::size_t list = 0, i = 0; list < n_lists; ++list)
    for (std::size_t c = 0; c < built.filled.sizes[list]; ++c, ++i)
      built.order[built.filled.first_block[list] * kCodeBlock + c] = built.filled.rows[i];
  built.view().check();
  return built;
}

// The k nearest of the codes in the probed lists by their decoded vectors.
void search_is_that_of_decoded_vectors() {
  using Rotation = LopqOptions::Rotation;
  const std::size_t d = 12, n = 3000, n_lists = 9, m = 25, n_probe = 3;
  auto X = gaussian(n * d, 8);
  for (std::size_t i = 0; i < X.size(); ++i)
    X[i] *= 1.0f / static_cast<float>(1 + i % d) * static_cast<float>(1 + i / d % 3);
  const auto queries = gaussian(m * d, 9);
  for (const int bits : {4, 5, 7})
    for (const Rotation rotation : {Rotation::kNone, Rotation::kShared, Rotation::kLocal})
      for (const std::size_t leaf_blocks : {0, 1, 3}) {
        const bool rounded = leaf_blocks != 1;
        const Built built = build(X, d, n_lists, {4, bits}, rotation, leaf_blocks, rounded);
        // Rotations of 8 bits are not quite orthogonal.
        const double near = rounded && rotation != Rotation::kNone ? 0.03 : 1e-4;
        const auto decoded = decode(built.arrays.view(), built.numbers, built.lists);
        const auto probes =
            CoarseSearch(built.arrays.coarse, built.arrays.d).nearest(queries, n_probe, 1);
        const auto squares =
            code_distances(built.arrays.view(), queries, built.numbers, built.lists, 3);
        for (const std::size_t k : {1, 10, 400}) {
          ScanOptions options;
          options.k = k;
          const auto found = scan_lists(built.view(), queries, probes, options);
          options.n_threads = 3;
          const auto threaded = scan_lists(built.view(), queries, probes, options);
          CHECK(found.places == threaded.places);
          CHECK(found.squared_distances == threaded.squared_distances);
          for (std::size_t q = 0; q < m; ++q) {
            std::vector<double> truth;
            for (std::size_t i = 0; i < n; ++i)
              if (std::count(probes.begin() + static_cast<std::ptrdiff_t>(q * n_probe),
                             probes.begin() + static_cast<std::ptrdiff_t>((q + 1) * n_probe),
                             built.lists[i]))
                truth.push_back(squared(decoded.data() + i * d, queries.data() + q * d, d));
            std::sort(truth.begin(), truth.end());
            std::set<std::int64_t> places;
            for (std::size_t j = 0; j < k; ++j) {
              const std::int64_t place = found.places[q * k + j];
              const double distance = static_cast<double>(found.squared_distances[q * k + j]);
              if (j >= truth.size()) {
                CHECK(place == -1 && std::isinf(distance));
                continue;
              }
              CHECK(std::abs(distance - truth[j]) <= near * (1 + truth[j]));
              CHECK(place >= 0 && places.insert(place).second);
              const std::uint64_t row = built.order[static_cast<std::size_t>(place)];
              // Bit for bit what the codes' distances are without lists and blocks.
              CHECK(found.squared_distances[q * k + j] == squares[q * n + row]);
              CHECK(row < n &&
                    std::abs(squared(decoded.data() + row * d, queries.data() + q * d, d) -
                             distance) <= near * (1 + distance));
            }
          }
        }
      }
}

void what_is_no_code_is_refused() {
  const std::size_t d = 8;
  const auto X = gaussian(200 * d, 15);
  const Built built = build(X, d, 3, {4, 5}, LopqOptions::Rotation::kLocal, 0);
  const LopqView view = built.arrays.view();
  std::vector<std::uint8_t> numbers(4, 1);
  std::vector<std::uint32_t> lists{2};
  CHECK(decode(view, numbers, lists).size() == d);
  CHECK(code_distances(view, X, numbers, lists, 2).size() == 200);
  const std::vector<float> steps{1.0f};
  LopqView odd = view;
  odd.rotations.steps = steps;
  CHECK_THROWS(odd.check(), std::invalid_argument);
  const std::vector<std::int8_t> whole(d * d);
  odd.rotations.whole = whole;  // and values
  CHECK_THROWS(odd.check(), std::invalid_argument);
  const auto refused = [&] {
    CHECK_THROWS(decode(view, numbers, lists), std::invalid_argument);
    CHECK_THROWS(code_distances(view, X, numbers, lists, 1), std::invalid_argument);
  };
  lists[0] = 3;
  refused();
  lists[0] = 0;
  numbers[3] = 32;
  refused();
  numbers.pop_back();
  refused();
}

void what_is_not_allowed_is_not_found() {
  const std::size_t d = 8, n = 1500;
  const auto X = gaussian(n * d, 10), queries = gaussian(10 * d, 11);
  const Built built = build(X, d, 4, {4, 5}, LopqOptions::Rotation::kLocal, 2);
  std::vector<std::uint64_t> allowed(built.order.size() / 64);
  for (std::size_t place = 0; place < built.order.size(); ++place)
    if (built.order[place] % 3 == 1) allowed[place / 64] |= std::uint64_t{1} << place % 64;
  ScanOptions options;
  options.k = 600;
  options.allowed = allowed;
  const auto probes = CoarseSearch(built.arrays.coarse, built.arrays.d).nearest(queries, 4, 1);
  const auto found = scan_lists(built.view(), queries, probes, options);
  for (std::size_t q = 0; q < 10; ++q)
    for (std::size_t j = 0; j < 600; ++j) {
      const std::int64_t place = found.places[q * 600 + j];
      CHECK((place >= 0) == (j < 500));
      if (place >= 0) CHECK(built.order[static_cast<std::size_t>(place)] % 3 == 1);
    }
}

void few_leaves_are_the_nearest() {
  const std::size_t d = 8, n = 6000;
  const auto X = gaussian(n * d, 12), queries = gaussian(40 * d, 13);
  const Built built = build(X, d, 3, {4, 5}, LopqOptions::Rotation::kLocal, 1);
  const auto probes = CoarseSearch(built.arrays.coarse, built.arrays.d).nearest(queries, 3, 1);
  ScanOptions options;
  options.k = 10;
  const auto all = scan_lists(built.view(), queries, probes, options);
  double before = 0.0;
  for (const std::size_t leaves : {1, 4, 16, 1000}) {
    options.max_leaves = leaves;
    const auto some = scan_lists(built.view(), queries, probes, options);
    std::size_t common = 0;
    for (std::size_t q = 0; q < 40; ++q)
      for (std::size_t j = 0; j < 10; ++j)
        for (std::size_t i = 0; i < 10; ++i)
          common +=
              some.places[q * 10 + j] >= 0 && some.places[q * 10 + j] == all.places[q * 10 + i];
    const double recall = static_cast<double>(common) / 400.0;
    CHECK(recall >= before);
    before = recall;
  }
  CHECK(before == 1.0);
}

using Found = std::vector<std::pair<float, std::int64_t>>;

// What a query finds, leaf by leaf: the nearest list first, then 7 as they lie, then the rest.
Found found_by_leaves(const Built& built, const float* query, std::vector<std::uint32_t> probes,
                      const ScanOptions& options, std::size_t& n_left_out) {
  const InvertedFileView file = built.view();
  const LopqView& q = file.quantizer;
  constexpr float kFar = std::numeric_limits<float>::infinity();
  const auto eighth = probes.begin() + std::min<std::ptrdiff_t>(8, probes.end() - probes.begin());
  std::sort(probes.begin() + 1, eighth);
  std::sort(eighth, probes.end());
  std::vector<float> table(q.table_size()), scratch(table_scratch(q, 1)), least(q.code.n_parts);
  ListAxes axes(q);
  Found found;
  for (const std::uint32_t list : probes) {
    if (file.sizes[list] == 0) continue;
    axes.open(list);
    distance_tables(q, axes, &query, 1, scratch.data(), table.data(), least.data());
    std::sort(found.begin(), found.end());
    const float kth = found.size() < options.k ? kFar : found[options.k - 1].first;
    const auto entry = [&](std::size_t place, std::size_t part) {
      const std::size_t row = built.order[place];
      return table[part * q.code.n_centroids() + built.numbers[row * q.code.n_parts + part]];
    };
    const auto allowed = [&](std::size_t place) {
      return options.allowed.empty() || (options.allowed[place / 64] >> place % 64 & 1) != 0;
    };
    const std::size_t begin = file.first_block[list] * kCodeBlock, end = begin + file.sizes[list];
    const std::size_t step = file.leaf_blocks * kCodeBlock;
    std::vector<float> bounds;
    for (std::size_t first = begin; first < end; first += step) {
      const std::size_t last = std::min(end, first + step);
      float bound = 0.0f;
      for (std::size_t part = 0; part < q.code.n_parts; ++part) {
        float nearest = kFar;
        for (std::size_t place = first; place < last; ++place)
          nearest = std::min(nearest, entry(place, part));
        bound += nearest;
      }
      bool any = false;
      for (std::size_t place = first; place < last; ++place) any |= allowed(place);
      bounds.push_back(any ? bound : kFar);
    }
    float limit =
        static_cast<float>(static_cast<double>(kth) / (1.0 + options.eps) / (1.0 + options.eps));
    if (options.max_leaves != 0 && options.max_leaves < bounds.size()) {
      auto sorted = bounds;
      std::sort(sorted.begin(), sorted.end());
      limit = std::min(limit, sorted[options.max_leaves - 1]);
    }
    for (std::size_t leaf = 0; leaf < bounds.size(); ++leaf) {
      const bool whole = bounds.size() == 1;  // scanned in any case
      n_left_out += !whole && bounds[leaf] > limit;
      if (!whole && bounds[leaf] > limit) continue;
      for (std::size_t place = begin + leaf * step;
           place < std::min(end, begin + (leaf + 1) * step); ++place) {
        float distance = 0.0f;
        for (std::size_t part = 0; part < q.code.n_parts; ++part) distance += entry(place, part);
        if (allowed(place)) found.push_back({distance, static_cast<std::int64_t>(place)});
      }
    }
  }
  std::sort(found.begin(), found.end());
  found.resize(std::min(found.size(), options.k));
  return found;
}

void what_leaves_are_left_out_each_query_settles_alone() {
  const std::size_t d = 8, n = 9000, m = 40;
  auto X = gaussian(n * d, 21);
  std::copy_n(X.begin(), 2000 * d, X.begin() + 4000 * d);  // ties
  const auto queries = gaussian(m * d, 22);
  const Built built = build(X, d, 12, {4, 5}, LopqOptions::Rotation::kLocal, 1, true);
  std::vector<std::uint64_t> some(built.order.size() / 64);
  for (std::size_t place = 0; place < built.order.size(); ++place)
    if (built.order[place] < n && built.order[place] % 7 < 3)
      some[place / 64] |= std::uint64_t{1} << place % 64;
  std::size_t n_left_out = 0;
  for (const std::size_t n_probe : {4, 11})
    for (const bool filtered : {false, true})
      for (const std::size_t k : {1, 10, 300})
        for (const std::size_t leaves : {0, 2})
          for (const double eps : {0.0, 0.2, 2.0, 1e300}) {
            const auto probes = CoarseSearch(built.arrays.coarse, d).nearest(queries, n_probe, 1);
            ScanOptions options;
            options.k = k;
            options.eps = eps;
            options.max_leaves = leaves;
            if (filtered) options.allowed = some;
            const auto found = scan_lists(built.view(), queries, probes, options);
            options.n_threads = 3;
            const auto threaded = scan_lists(built.view(), queries, probes, options);
            CHECK(found.places == threaded.places);
            options.eps = 0.0;
            const auto all = scan_lists(built.view(), queries, probes, options);
            options.eps = eps;
            for (std::size_t q = 0; q < m; ++q) {
              const auto own = probes.begin() + static_cast<std::ptrdiff_t>(q * n_probe);
              const auto last = own + static_cast<std::ptrdiff_t>(n_probe);
              const Found expected =
                  found_by_leaves(built, queries.data() + q * d, {own, last}, options, n_left_out);
              bool same = true;
              for (std::size_t j = 0; j < k; ++j) {
                const float distance = found.squared_distances[q * k + j];
                same &= j < expected.size() ? distance == expected[j].first &&
                                                  found.places[q * k + j] == expected[j].second
                                            : found.places[q * k + j] == -1;
              }
              CHECK(same);
              const auto last_of = [&](const CodeNeighbours& of) {
                return std::sqrt(static_cast<double>(of.squared_distances[q * k + k - 1]));
              };
              CHECK(last_of(found) <= last_of(all) * (1.0 + eps) * (1.0 + 1e-6));
            }
          }
  CHECK(n_left_out > 1000);
  ScanOptions options;
  for (const double eps : {-0.1, std::nan(""), std::numeric_limits<double>::infinity()}) {
    options.eps = eps;
    CHECK_THROWS(scan_lists(built.view(), queries, std::vector<std::uint32_t>(m, 0), options),
                 std::invalid_argument);
  }
}

// A file may be damaged: bits behind the last centroid name nothing.
void bounds_mind_centroids_alone() {
  for (const int bits : {4, 5, 6}) {
    const ProductCode code{3, bits};
    const std::size_t n = code.n_centroids(), words = (n + 31) / 32;
    AlignedVector<float> entries(code.n_parts * n);
    for (std::size_t i = 0; i < entries.size(); ++i) entries[i] = static_cast<float>(i * 7 % 11);
    const std::vector<std::uint32_t> present(2 * code.n_parts * words, 0xffffffffu);
    float sum = 0.0f;
    for (std::size_t part = 0; part < code.n_parts; ++part)
      sum += *std::min_element(entries.begin() + static_cast<std::ptrdiff_t>(part * n),
                               entries.begin() + static_cast<std::ptrdiff_t>((part + 1) * n));
    for (const auto* kernels : {&scan::kernels_scalar(), &scan::kernels()}) {
      float bounds[2];
      kernels->leaf_bounds(code, present.data(), 2, entries.data(), bounds);
      CHECK(bounds[0] == sum && bounds[1] == sum);
    }
  }
}

// A leaf without anything allowed takes no place among max_leaves.
void only_leaves_with_something_allowed_count() {
  const std::size_t d = 8, n = 6000;
  const auto X = gaussian(n * d, 12), queries = gaussian(40 * d, 13);
  const Built built = build(X, d, 1, {4, 5}, LopqOptions::Rotation::kLocal, 1);
  const std::size_t n_places = built.order.size();
  std::vector<std::uint64_t> allowed(n_places / 64);
  for (const std::size_t place : {std::size_t{5}, n_places / 2}) allowed[place / 64] |= 1;
  const std::vector<std::uint32_t> probes(40, 0);
  ScanOptions options;
  options.k = 3;
  options.allowed = allowed;
  for (const std::size_t leaves : {1, 2, 1000}) {
    options.max_leaves = leaves;
    const auto found = scan_lists(built.view(), queries, probes, options);
    for (std::size_t q = 0; q < 40; ++q) {
      CHECK(found.places[q * 3] >= 0);
      CHECK((found.places[q * 3 + 1] >= 0) == (leaves > 1));
      CHECK(found.places[q * 3 + 2] == -1);
    }
  }
  allowed.pop_back();
  options.allowed = allowed;
  bool refused = false;
  try {
    scan_lists(built.view(), queries, probes, options);
  } catch (const std::invalid_argument&) {
    refused = true;
  }
  CHECK(refused);
}

}  // namespace

int main() {
  search_is_that_of_decoded_vectors();
  what_is_no_code_is_refused();
  what_is_not_allowed_is_not_found();
  few_leaves_are_the_nearest();
  only_leaves_with_something_allowed_count();
  what_leaves_are_left_out_each_query_settles_alone();
  bounds_mind_centroids_alone();
  return delfsearch_test::report("test_lists");
}
