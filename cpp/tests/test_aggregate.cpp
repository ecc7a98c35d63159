// The grouping of neighbours against a brute-force one, and the order of merged lists.
#include <algorithm>
#include <cstdint>
#include <limits>
#include <map>
#include <random>
#include <set>
#include <stdexcept>
#include <vector>

#include "check.hpp"
#include "delfsearch/aggregate.hpp"

using namespace delfsearch;

namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

struct Collection {
  std::vector<std::int64_t> offsets{0};
  std::vector<std::int64_t> image_ids;
  std::vector<std::int32_t> first;

  explicit Collection(const std::vector<int>& counts) {
    for (std::size_t i = 0; i < counts.size(); ++i) {
      offsets.push_back(offsets.back() + counts[i]);
      image_ids.push_back(static_cast<std::int64_t>(7 * i + 3));
    }
    first = first_photo_of_buckets(offsets);
  }
  PhotoRows rows() const { return {offsets, image_ids, first}; }
};

void test_photo_of() {
  for (const auto& counts : std::vector<std::vector<int>>{
           {1}, {0, 0, 5}, {300, 0, 300}, {256, 256, 1}, {0, 1000, 0, 0, 2}}) {
    const Collection photos(counts);
    for (std::size_t p = 0; p < counts.size(); ++p) {
      for (std::int64_t row = photos.offsets[p]; row < photos.offsets[p + 1]; ++row) {
        CHECK(photos.rows().photo_of(row) == static_cast<std::int32_t>(p));
      }
    }
  }
  std::vector<int> gaps(3000, 0);
  gaps[10] = 1;
  gaps[2500] = 700;
  const Collection photos(gaps);
  CHECK(photos.rows().photo_of(0) == 10);
  CHECK(photos.rows().photo_of(1) == 2500);
  CHECK(photos.rows().photo_of(700) == 2500);
}

void test_grouping() {
  std::mt19937 random(5);
  for (int round = 0; round < 50; ++round) {
    std::vector<int> counts;
    for (int i = 0; i < 40; ++i) counts.push_back(static_cast<int>(random() % 30));
    counts.push_back(1);
    const Collection photos(counts);
    const std::size_t m = 1 + random() % 20, k = 1 + random() % 12;
    std::vector<std::int64_t> rows(m * k, -1);
    std::vector<float> distances(m * k, kInfinity);
    std::map<std::int64_t, std::set<std::size_t>> voters;
    std::map<std::int64_t, std::size_t> pairs;
    for (std::size_t at = 0; at < m * k; ++at) {
      if (random() % 5 == 0) continue;
      rows[at] = static_cast<std::int64_t>(random() % static_cast<unsigned>(photos.offsets.back()));
      distances[at] = static_cast<float>(at % k);
      const auto id = photos.image_ids[static_cast<std::size_t>(photos.rows().photo_of(rows[at]))];
      voters[id].insert(at / k);
      ++pairs[id];
    }
    const std::size_t most = random() % 50;
    const GroupedMatches out = group_by_photo(rows, distances, m, k, photos.rows(), most, false);
    CHECK(out.image_ids.size() == std::min(most, voters.size()));
    for (std::size_t c = 0; c < out.image_ids.size(); ++c) {
      const auto id = out.image_ids[c];
      CHECK(out.offsets[c + 1] - out.offsets[c] == static_cast<std::int64_t>(pairs[id]));
      if (c > 0) {
        const auto before = out.image_ids[c - 1];
        CHECK(voters[before].size() > voters[id].size() ||
              (voters[before].size() == voters[id].size() && before < id));
      }
      for (auto i = static_cast<std::size_t>(out.offsets[c]);
           i < static_cast<std::size_t>(out.offsets[c + 1]); ++i) {
        const auto photo = static_cast<std::size_t>(photos.rows().photo_of(out.rows[i]));
        CHECK(photos.image_ids[photo] == id);
        CHECK(out.rows[i] - photos.offsets[photo] == out.database_indices[i]);
      }
    }
  }
  const Collection photos({3});
  CHECK(group_by_photo({}, {}, 0, 4, photos.rows(), 10, true).offsets.size() == 1);
}

void test_merging_and_filtering() {
  const Collection photos({2, 2, 2});
  // Segment 0 holds photo 2, segment 1 photos 0 and 1; all at one distance: image ids decide.
  const std::vector<std::int64_t> rows{4, 5, -1, 0, 1, 2};
  const std::vector<float> distances{1, 1, kInfinity, 1, 1, 1};
  const NeighborLists merged = merge_neighbors(rows, distances, 2, 1, 3, photos.rows());
  CHECK((merged.rows == std::vector<std::int64_t>{0, 1, 2}));
  CHECK(merged.kept[0] == 3);

  const std::vector<std::int64_t> begin{0, 4}, end{2, 5};
  const NeighborLists kept =
      filter_neighbors(Span<const std::int64_t>(rows).subspan(3, 3),
                       Span<const float>(distances).subspan(3, 3), 1, 2, begin, end);
  CHECK((kept.rows == std::vector<std::int64_t>{2, -1}));
  CHECK(kept.kept[0] == 1 && kept.squared_distances[1] == kInfinity);
  CHECK_THROWS(filter_neighbors(rows, {}, 1, 2, begin, end), std::invalid_argument);
  CHECK_THROWS(first_photo_of_buckets({}), std::invalid_argument);
}

}  // namespace

int main() {
  test_photo_of();
  test_grouping();
  test_merging_and_filtering();
  return delfsearch_test::report("aggregate");
}
