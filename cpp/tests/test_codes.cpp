// k-means, product codes and posting lists against slow searches that share no code with them.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <random>
#include <set>
#include <stdexcept>
#include <vector>

#include "check.hpp"
#include "delfsearch/centroids.hpp"
#include "delfsearch/coarse.hpp"
#include "delfsearch/inverted_file.hpp"
#include "delfsearch/kmeans.hpp"
#include "delfsearch/lopq.hpp"
#include "nearest_codes.hpp"
#include "simd/centroid_kernels.hpp"
#include "simd/scan_kernels.hpp"

using namespace delfsearch;

namespace {

std::vector<float> gaussian(std::size_t n, unsigned seed, float shift = 0.0f) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal;
  std::vector<float> values(n);
  for (float& value : values) value = normal(generator) + shift;
  return values;
}

double squared(const float* a, const float* b, std::size_t d) {
  double sum = 0.0;
  for (std::size_t i = 0; i < d; ++i) {
    const double difference = static_cast<double>(a[i]) - static_cast<double>(b[i]);
    sum += difference * difference;
  }
  return sum;
}

void nearest_is_nearest() {
  for (const std::size_t d : {1, 3, 4, 40})
    for (const std::size_t k : {1, 5, 32, 33, 100}) {
      // Far from the origin, where a careless expansion of the square loses everything.
      const auto centroids = gaussian(k * d, 1, 1000.0f), X = gaussian(37 * d, 2, 1000.0f);
      std::vector<std::uint32_t> numbers(37);
      std::vector<float> distances(37);
      assign_nearest(CentroidSet(centroids, d), X, numbers, distances, 2);
      for (std::size_t i = 0; i < 37; ++i) {
        double least = std::numeric_limits<double>::infinity();
        for (std::size_t c = 0; c < k; ++c)
          least = std::min(least, squared(X.data() + i * d, centroids.data() + c * d, d));
        const double got = squared(X.data() + i * d, centroids.data() + numbers[i] * d, d);
        CHECK(got <= least * (1 + 1e-4) + 1e-4);
        CHECK(std::abs(static_cast<double>(distances[i]) - got) <= 1e-3 * (1 + got));
      }
    }
  // Of equal centroids the lower number.
  const std::vector<float> same(50 * 4, 2.5f), x(4, 1.0f);
  std::uint32_t number = 99;
  CentroidSet(same, 4).nearest(x.data(), 4, 1, &number, nullptr);
  CHECK(number == 0);
}

void kmeans_finds_planted_clusters() {
  const std::size_t k = 20, d = 6, n = 2000;
  const auto centres = gaussian(k * d, 3);
  auto X = gaussian(n * d, 4);
  for (std::size_t i = 0; i < n; ++i)
    for (std::size_t j = 0; j < d; ++j)
      X[i * d + j] = 0.01f * X[i * d + j] + 10.0f * centres[i % k * d + j];
  KMeansOptions options;
  options.k = k;
  options.seed = 5;
  options.n_threads = 3;
  const KMeans found = kmeans(X, d, options);
  CHECK(found.inertia / n < 2 * d * 1e-4);
  options.n_threads = 1;
  CHECK(kmeans(X, d, options).centroids == found.centroids);
  options.batch_size = 500;
  options.max_iterations = 60;
  CHECK(kmeans(X, d, options).inertia / n < 2 * d * 1e-4);
}

void kmeans_of_awkward_data() {
  KMeansOptions options;
  options.k = 7;
  // Three distinct rows, seven clusters.
  std::vector<float> X;
  for (int i = 0; i < 30; ++i) X.push_back(static_cast<float>(i % 3));
  const KMeans few = kmeans(X, 1, options);
  CHECK(few.inertia == 0.0);
  for (const float c : few.centroids) CHECK(c == 0.0f || c == 1.0f || c == 2.0f);
  // As many rows as clusters: each is one.
  const auto own = gaussian(7 * 3, 6);
  CHECK(kmeans(own, 3, options).inertia < 1e-10);
  // A far row that no sample may miss: repair gives every cluster a row.
  std::vector<float> skewed(5000, 0.0f);
  for (int i = 0; i < 6; ++i) skewed[static_cast<std::size_t>(i) * 800] = 100.0f * (i + 1);
  CHECK(kmeans(skewed, 1, options).inertia == 0.0);
  // Centroids to begin with, and to end with where no iteration follows.
  options.start = own;
  options.max_iterations = 0;
  const auto moved = gaussian(40 * 3, 14);
  CHECK(kmeans(moved, 3, options).centroids == own);
  options.max_iterations = 25;
  const KMeans onward = kmeans(moved, 3, options);
  CHECK(onward.n_iterations > 0 && onward.centroids != own);
  CHECK_THROWS(kmeans(moved, 2, options), std::invalid_argument);
  options.start = {};
  options.k = 31;
  CHECK_THROWS(kmeans(X, 1, options), std::invalid_argument);
}

void codes_are_packed_to_the_bit() {
  for (int bits = 4; bits <= 8; ++bits)
    for (const std::size_t n : {0, 1, 63, 64, 65, 200}) {
      const ProductCode code{7, bits};
      std::mt19937 generator(static_cast<unsigned>(bits));
      std::vector<std::uint8_t> numbers(n * code.n_parts);
      for (auto& number : numbers)
        number = static_cast<std::uint8_t>(generator() % code.n_centroids());
      const auto blocks = pack_numbers(code, numbers);
      CHECK(blocks.size() * 8 ==
            code.n_blocks(n) * kCodeBlock * code.n_parts * static_cast<std::size_t>(bits));
      CHECK(unpack_numbers(code, blocks, n) == numbers);
    }
}

std::vector<const scan::Kernels*> scans() {
  std::vector<const scan::Kernels*> all{&scan::kernels_scalar()};
  if (&scan::kernels() != all[0]) all.push_back(&scan::kernels());
#ifdef DELFSEARCH_X86
  if (&scan::kernels() == &scan::kernels_avx512()) all.push_back(&scan::kernels_avx2());
#endif
  return all;
}

// Of blocks with all, some and few codes wanted, on every instruction set, what is within the
// limit.
void distances_are_alike(const ProductCode& code, const std::vector<std::uint8_t>& blocks,
                         const std::vector<std::uint8_t>& numbers,
                         const std::vector<float>& floats) {
  const std::vector<scan::Passed> which{
      {~std::uint64_t{0}, 0}, {0x00f000ff12345678ULL, 2}, {0x8000000000000001ULL, 3}, {1, 7}};
  for (const float limit : {3000.0f, 5000.0f, 1e9f}) {
    std::vector<std::pair<std::uint32_t, float>> expected;
    for (const scan::Passed& one : which)
      for (std::size_t bit = 0; bit < kCodeBlock; ++bit) {
        const std::size_t place = one.block * kCodeBlock + bit;
        float sum = 0.0f;
        for (std::size_t p = 0; p < code.n_parts; ++p)
          sum = sum + floats[p * code.n_centroids() + numbers[place * code.n_parts + p]];
        if (one.codes >> bit & 1 && sum <= limit)
          expected.push_back({static_cast<std::uint32_t>(place) + 1000, sum});
      }
    for (const auto* kernels : scans()) {
      std::vector<float> values(64 * which.size() + scan::kRoom);
      std::vector<std::uint32_t> places(64 * which.size() + scan::kRoom);
      const std::size_t n =
          kernels->distances(code, blocks.data(), which.data(), which.size(), floats.data(), limit,
                             1000, values.data(), places.data());
      std::vector<std::pair<std::uint32_t, float>> got;
      for (std::size_t i = 0; i < n; ++i) got.push_back({places[i], values[i]});
      std::sort(got.begin(), got.end());
      CHECK(got == expected);
    }
  }
}

void every_instruction_set_scans_alike() {
  for (int bits = 4; bits <= 8; ++bits) {
    const ProductCode code{10, bits};
    std::mt19937 generator(7);
    std::vector<std::uint8_t> numbers(1000 * code.n_parts);
    for (auto& number : numbers)
      number = static_cast<std::uint8_t>(generator() % code.n_centroids());
    const auto blocks = pack_numbers(code, numbers);
    std::vector<std::uint8_t> entries(4 * code.n_parts * code.n_centroids());
    for (auto& entry : entries) entry = static_cast<std::uint8_t>(generator() % 50);
    std::vector<float> floats(code.n_parts * code.n_centroids());
    for (float& value : floats) value = static_cast<float>(generator() % 10000) * 0.1f;
    for (std::size_t n_tables = 1; n_tables <= 4; ++n_tables) {
      scan::ByteTable tables[4];
      for (std::size_t q = 0; q < n_tables; ++q)
        tables[q] = {entries.data() + q * code.n_parts * code.n_centroids(),
                     static_cast<std::uint8_t>(120 + 45 * q)};
      const std::size_t n_blocks = code.n_blocks(1000);
      std::vector<scan::Passed> first[4];
      for (const auto* kernels : scans()) {
        std::vector<scan::Passed> found[4];
        scan::Passed* out[4];
        std::size_t counts[4];
        for (std::size_t q = 0; q < n_tables; ++q) {
          found[q].resize(n_blocks);
          out[q] = found[q].data();
        }
        kernels->may_pass(code, blocks.data(), n_blocks, tables, n_tables, out, counts);
        for (std::size_t q = 0; q < n_tables; ++q) {
          found[q].resize(counts[q]);
          if (first[q].empty()) first[q] = found[q];
          CHECK(!found[q].empty() && found[q].size() == first[q].size());
          for (std::size_t i = 0; i < found[q].size(); ++i)
            CHECK(found[q][i].codes == first[q][i].codes && found[q][i].block == first[q][i].block);
        }
      }
    }
    distances_are_alike(code, blocks, numbers, floats);
    std::vector<float> least(code.n_parts);
    for (std::size_t p = 0; p < code.n_parts; ++p)
      least[p] = *std::min_element(floats.data() + p * code.n_centroids(),
                                   floats.data() + (p + 1) * code.n_centroids());
    std::vector<std::uint8_t> expected(floats.size()), got(floats.size());
    scan::kernels_scalar().round_down(code, floats.data(), least.data(), 0.3f, expected.data());
    CHECK(*std::max_element(expected.begin(), expected.end()) == 255);
    for (const auto* kernels : scans()) {
      kernels->round_down(code, floats.data(), least.data(), 0.3f, got.data());
      CHECK(got == expected);
    }
    const std::size_t words = (code.n_centroids() + 31) / 32;
    for (const std::size_t n_leaves : {1, 7, 8, 16, 19}) {
      std::vector<std::uint32_t> present(n_leaves * code.n_parts * words);
      for (auto& word : present) {
        word = static_cast<std::uint32_t>(generator()) & static_cast<std::uint32_t>(generator());
        word = (word | 2u) & (bits == 4 ? 0xffffu : ~0u);
      }
      std::vector<float> slow(n_leaves), bounds(n_leaves);
      scan::kernels_scalar().leaf_bounds(code, present.data(), n_leaves, floats.data(),
                                         slow.data());
      for (const auto* kernels : scans()) {
        kernels->leaf_bounds(code, present.data(), n_leaves, floats.data(), bounds.data());
        CHECK(bounds == slow);
      }
    }
  }
}

void every_instruction_set_keeps_alike() {
  std::mt19937 generator(17);
  for (const std::size_t n : {1, 5, 8, 16, 17, 64, 100, 191}) {
    std::vector<float> values(n + scan::kRoom);
    std::vector<std::uint32_t> keys(n + scan::kRoom), expected(n);
    for (std::size_t i = 0; i < n; ++i) {
      values[i] = static_cast<float>(generator() % 40);  // many tie
      keys[i] = static_cast<std::uint32_t>(generator() % 50);
    }
    std::vector<std::uint32_t> order(n);
    for (std::size_t i = 0; i < n; ++i) order[i] = static_cast<std::uint32_t>(i);
    std::stable_sort(order.begin(), order.end(),
                     [&](std::uint32_t a, std::uint32_t b) { return keys[a] < keys[b]; });
    for (std::size_t i = 0; i < n; ++i) expected[order[i]] = static_cast<std::uint32_t>(i);
    for (const auto* kernels : scans()) {
      std::vector<std::uint32_t> ranks(n + scan::kRoom);
      kernels->ranks(keys.data(), n, ranks.data());
      CHECK(std::equal(expected.begin(), expected.end(), ranks.begin()));
      float least, greatest;
      kernels->range(values.data(), n, &least, &greatest);
      CHECK(least == *std::min_element(values.begin(), values.begin() + static_cast<int>(n)));
      CHECK(greatest == *std::max_element(values.begin(), values.begin() + static_cast<int>(n)));
      for (const float limit : {-1.0f, 0.0f, 20.0f, 39.0f}) {
        auto kept = values;
        auto places = keys;
        std::vector<float> slow_values;
        std::vector<std::uint32_t> slow_places;
        for (std::size_t i = 0; i < n; ++i)
          if (values[i] <= limit) {
            slow_values.push_back(values[i]);
            slow_places.push_back(keys[i]);
          }
        CHECK(kernels->count_within(values.data(), n, limit) == slow_values.size());
        CHECK(kernels->keep_within(kept.data(), places.data(), n, limit) == slow_values.size());
        CHECK(std::equal(slow_values.begin(), slow_values.end(), kept.begin()));
        CHECK(std::equal(slow_places.begin(), slow_places.end(), places.begin()));
      }
    }
  }
}

// Whatever is given in whatever portions, and however much of it ties, the k least are left.
void nearest_codes_are_the_least() {
  std::mt19937 generator(18);
  for (const auto* kernels : scans())
    for (const std::size_t k : {1, 10, 64, 300})
      for (const unsigned kinds : {1u, 7u, 100000u})
        for (const std::size_t portion : {3, 64, 900}) {
          std::vector<float> values(NearestCodes::room(k));
          std::vector<std::uint32_t> places(NearestCodes::room(k));
          NearestCodes nearest;
          nearest.reset(k, values.data(), places.data());
          std::vector<std::pair<float, std::int64_t>> all;
          std::uint32_t place = 5000;
          for (int times = 0; times < 8; ++times) {
            std::vector<float> some(portion + scan::kRoom);
            std::vector<std::uint32_t> at(portion + scan::kRoom);
            std::size_t n = 0;
            for (std::size_t i = 0; i < portion; ++i) {
              const float value = static_cast<float>(generator() % kinds) * 0.25f;
              all.push_back({value, --place});
              if (value > nearest.limit()) continue;
              some[n] = value;
              at[n++] = place;
            }
            nearest.take(*kernels, some.data(), at.data(), n);
          }
          std::vector<float> distances(k);
          std::vector<std::int64_t> found(k);
          nearest.write(*kernels, distances.data(), found.data());
          std::sort(all.begin(), all.end());
          for (std::size_t i = 0; i < k; ++i) {
            CHECK(found[i] == (i < all.size() ? all[i].second : -1));
            CHECK(i < all.size() ? distances[i] == all[i].first : std::isinf(distances[i]));
          }
        }
}

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
            LopqOptions::Rotation rotation, std::size_t leaf_blocks) {
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
        const Built built = build(X, d, n_lists, {4, bits}, rotation, leaf_blocks);
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
              CHECK(std::abs(distance - truth[j]) <= 1e-4 * (1 + truth[j]));
              CHECK(place >= 0 && places.insert(place).second);
              const std::uint64_t row = built.order[static_cast<std::size_t>(place)];
              // Bit for bit what the codes' distances are without lists and blocks.
              CHECK(found.squared_distances[q * k + j] == squares[q * n + row]);
              CHECK(row < n &&
                    std::abs(squared(decoded.data() + row * d, queries.data() + q * d, d) -
                             distance) <= 1e-4 * (1 + distance));
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
  nearest_is_nearest();
  kmeans_finds_planted_clusters();
  kmeans_of_awkward_data();
  codes_are_packed_to_the_bit();
  every_instruction_set_scans_alike();
  every_instruction_set_keeps_alike();
  nearest_codes_are_the_least();
  search_is_that_of_decoded_vectors();
  what_is_no_code_is_refused();
  what_is_not_allowed_is_not_found();
  few_leaves_are_the_nearest();
  only_leaves_with_something_allowed_count();
  return delfsearch_test::report("test_codes");
}
