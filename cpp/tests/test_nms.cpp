#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <stdexcept>

#include "check.hpp"
#include "delfsearch/nms.hpp"

using delfsearch::non_maximum_suppression;

namespace {

std::vector<std::int64_t> brute_force(const std::vector<float>& boxes,
                                      const std::vector<float>& scores, float threshold,
                                      std::size_t max_kept) {
  std::vector<std::int64_t> order(scores.size());
  for (std::size_t i = 0; i < order.size(); ++i) order[i] = static_cast<std::int64_t>(i);
  std::stable_sort(order.begin(), order.end(), [&](auto a, auto b) {
    return scores[static_cast<std::size_t>(a)] > scores[static_cast<std::size_t>(b)];
  });
  std::vector<std::int64_t> kept;
  for (auto i : order) {
    if (kept.size() == max_kept) break;
    const float* a = &boxes[4 * static_cast<std::size_t>(i)];
    const bool dropped = std::any_of(kept.begin(), kept.end(), [&](auto j) {
      const float* b = &boxes[4 * static_cast<std::size_t>(j)];
      const float w = std::max(0.0f, std::min(a[2], b[2]) - std::max(a[0], b[0]));
      const float h = std::max(0.0f, std::min(a[3], b[3]) - std::max(a[1], b[1]));
      const float area_a = (a[2] - a[0]) * (a[3] - a[1]), area_b = (b[2] - b[0]) * (b[3] - b[1]);
      return w * h > threshold * (area_a + area_b - w * h);
    });
    if (!dropped) kept.push_back(i);
  }
  return kept;
}

void test_against_brute_force() {
  std::mt19937 random(7);
  std::uniform_real_distribution<float> position(0.0f, 300.0f), side(0.0f, 200.0f);
  for (int round = 0; round < 60; ++round) {
    const std::size_t n = random() % 300;
    std::vector<float> boxes, scores;
    for (std::size_t i = 0; i < n; ++i) {
      const float x = position(random), y = position(random);
      const float s = round % 2 ? side(random) : 20.0f * static_cast<float>(1 << (random() % 4));
      boxes.insert(boxes.end(), {x, y, x + s, y + s});
      scores.push_back(static_cast<float>(random() % 50));
    }
    for (float threshold : {0.0f, 0.3f, 0.5f, 0.7f, 0.9f, 1.0f}) {
      for (std::size_t max_kept : {std::size_t{0}, std::size_t{10}, std::size_t{1000}}) {
        CHECK(non_maximum_suppression(boxes, scores, threshold, max_kept) ==
              brute_force(boxes, scores, threshold, max_kept));
      }
    }
  }
}

void test_refusals() {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const std::vector<float> box{0, 0, 1, 1}, inverted{1, 0, 0, 1}, bad{0, 0, nan, 1}, one{1},
      two{1, 2};
  CHECK_THROWS(non_maximum_suppression(box, two, 0.5f, 1), std::invalid_argument);
  CHECK_THROWS(non_maximum_suppression(inverted, one, 0.5f, 1), std::invalid_argument);
  CHECK_THROWS(non_maximum_suppression(bad, one, 0.5f, 1), std::invalid_argument);
  CHECK_THROWS(non_maximum_suppression(box, std::vector<float>{nan}, 0.5f, 1),
               std::invalid_argument);
  CHECK_THROWS(non_maximum_suppression(box, one, 1.5f, 1), std::invalid_argument);
  CHECK_THROWS(non_maximum_suppression(box, one, nan, 1), std::invalid_argument);
  CHECK(non_maximum_suppression(std::vector<float>{}, std::vector<float>{}, 0.5f, 1).empty());
}

}  // namespace

int main() {
  test_against_brute_force();
  test_refusals();
  return delfsearch_test::report("nms");
}
