// The verifier from C++ alone: fits, limits, a planted map, refusals, threads.
#include <cmath>
#include <random>
#include <stdexcept>
#include <vector>

#include "check.hpp"
#include "delfsearch/affine.hpp"
#include "delfsearch/ransac.hpp"
#include "ransac_kernels.hpp"

using namespace delfsearch;

namespace {

struct Workload {
  std::vector<float> query, database, distances;
  std::vector<std::int64_t> offsets{0}, ids;

  RansacMatches view() const { return {query, database, distances, offsets, ids}; }

  void add(std::mt19937& random, int n, int n_true, const Affine& map) {
    std::uniform_real_distribution<float> position(0.0f, 1000.0f);
    for (int i = 0; i < n; ++i) {
      const float x = position(random), y = position(random);
      query.insert(query.end(), {x, y});
      if (i < n_true) {
        database.push_back(static_cast<float>(map.a * x + map.b * y + map.c));
        database.push_back(static_cast<float>(map.d * x + map.e * y + map.f));
      } else {
        const float u = position(random), v = position(random);
        database.insert(database.end(), {u, v});
      }
      distances.push_back(static_cast<float>(i % 7));
    }
    ids.push_back(static_cast<std::int64_t>(ids.size()));
    offsets.push_back(static_cast<std::int64_t>(distances.size()));
  }
};

bool close(double a, double b, double tolerance) { return std::abs(a - b) <= tolerance; }

void test_fits() {
  const Affine map{1.1, 0.3, -40, -0.2, 0.9, 17};
  std::vector<PointPair> pairs;
  for (double x : {0.0, 100.0, 250.0})
    for (double y : {0.0, 70.0})
      pairs.push_back({x, y, map.a * x + map.b * y + map.c, map.d * x + map.e * y + map.f});
  const auto fitted = fit_affine(pairs);
  CHECK(fitted.has_value());
  if (fitted) {
    CHECK(close(fitted->a, map.a, 1e-9) && close(fitted->b, map.b, 1e-9));
    CHECK(close(fitted->d, map.d, 1e-9) && close(fitted->e, map.e, 1e-9));
    CHECK(close(fitted->c, map.c, 1e-9) && close(fitted->f, map.f, 1e-9));
  }
  CHECK(!fit_affine(Span<const PointPair>(pairs.data(), 2)));
  std::vector<PointPair> line;
  for (double x : {0.0, 1.0, 2.0, 3.0}) line.push_back({x, 2 * x, -2 * x, x});
  CHECK(!fit_affine(line));
  const auto turned = fit_similarity(line);
  CHECK(turned && close(turned->a, 0, 1e-12) && close(turned->d, 1, 1e-12));
  const std::vector<PointPair> point(5, PointPair{1, 1, 2, 2});
  CHECK(!fit_affine(point) && !fit_similarity(point));
}

void test_limits() {
  AffineLimits limits;
  CHECK(within_limits(Affine{}, limits));
  CHECK(!within_limits(Affine{-1, 0, 0, 0, 1, 0}, limits));
  CHECK(!within_limits(Affine{0, 0, 0, 0, 0, 0}, limits));
  CHECK(!within_limits(Affine{1, 6, 0, 0, 1, 0}, limits));
  CHECK(!within_limits(Affine{NAN, 0, 0, 0, 1, 0}, limits));
  CHECK(!within_limits(Affine{1, 0, INFINITY, 0, 1, 0}, limits));
  limits.max_stretch = 1;
  CHECK(within_limits(Affine{0.6, -0.8, 0, 0.8, 0.6, 0}, limits));
  limits.max_rotation_deg = 50;
  CHECK(!within_limits(Affine{0.6, -0.8, 0, 0.8, 0.6, 0}, limits));
}

void test_runs() {
  using ransac::runs_hit;
  // Runs 0-1, 2-2, 3-63.
  const std::uint64_t ends = 1ULL << 1 | 1ULL << 2 | 1ULL << 63;
  CHECK(runs_hit(0, ends) == 0);
  CHECK(runs_hit(1, ends) == 1ULL << 1);
  CHECK(runs_hit(3, ends) == 1ULL << 1);
  CHECK(runs_hit(4, ends) == 1ULL << 2);
  CHECK(runs_hit(1ULL << 40 | 1ULL << 63, ends) == 1ULL << 63);
  CHECK(runs_hit(~0ULL, ends) == ends);
}

void test_search() {
  std::mt19937 random(1);
  Workload work;
  const Affine map{0.9, -0.2, 100, 0.25, 1.1, -30};
  for (int i = 0; i < 30; ++i) work.add(random, 20 + 10 * i, i % 3 == 0 ? 15 + 5 * i : 0, map);
  RansacOptions options;
  options.max_error = 5;
  const RansacResults one = ransac_affine(work.view(), options, 1);
  for (std::size_t i = 0; i < 30; ++i) {
    if (i % 3 == 0) {
      CHECK(one.n_inliers[i] >= static_cast<int>(15 + 5 * i));
      CHECK(close(one.affines[6 * i], map.a, 0.05) && close(one.affines[6 * i + 4], map.e, 0.05));
    } else {
      CHECK(one.n_inliers[i] <= 9);
    }
    CHECK(one.inlier_offsets[i + 1] - one.inlier_offsets[i] == one.n_inliers[i]);
  }
  const RansacResults many = ransac_affine(work.view(), options, 4);
  CHECK(one.affines == many.affines && one.inlier_rows == many.inlier_rows);
}

void test_refusals() {
  std::mt19937 random(1);
  Workload work;
  work.add(random, 30, 30, Affine{});
  RansacOptions options;
  {
    Workload bad = work;
    bad.query.pop_back();
    CHECK_THROWS(ransac_affine(bad.view(), options, 1), std::invalid_argument);
    bad = work;
    bad.offsets.back() = 29;
    CHECK_THROWS(ransac_affine(bad.view(), options, 1), std::invalid_argument);
    bad = work;
    bad.offsets.insert(bad.offsets.begin() + 1, 31);
    bad.ids.push_back(2);
    CHECK_THROWS(ransac_affine(bad.view(), options, 1), std::invalid_argument);
    bad = work;
    bad.ids.clear();
    CHECK_THROWS(ransac_affine(bad.view(), options, 1), std::invalid_argument);
  }
  options.max_error = NAN;
  CHECK_THROWS(ransac_affine(work.view(), options, 1), std::invalid_argument);
  options.max_error = 5;
  options.confidence = 1;
  CHECK_THROWS(ransac_affine(work.view(), options, 1), std::invalid_argument);
  options.confidence = 0.9;
  options.limits.max_stretch = 0;
  CHECK_THROWS(ransac_affine(work.view(), options, 1), std::invalid_argument);
  options.limits.max_stretch = 2;
  CHECK(ransac_affine(work.view(), options, 1).n_inliers[0] == 30);
  // What Python refuses must not break the core: values that are not finite are no inliers.
  work.query[4] = NAN;
  work.database[9] = INFINITY;
  work.distances[3] = NAN;
  const RansacResults found = ransac_affine(work.view(), options, 1);
  CHECK(found.n_inliers[0] >= 27 && found.n_inliers[0] <= 28);
}

}  // namespace

int main() {
  test_fits();
  test_limits();
  test_runs();
  test_search();
  test_refusals();
  return delfsearch_test::report("test_ransac");
}
