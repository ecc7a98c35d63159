#include "delfsearch/nms.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <stdexcept>

namespace delfsearch {
namespace {

// Kept boxes of about one area, one array per coordinate so that the compiler vectorizes the scan.
struct Group {
  float min_area;
  float max_area;
  std::vector<float> x0, y0, x1, y1, area;

  // Boxes are tested in fixed blocks: branch-free inside, so vectorizable; early out between.
  bool suppresses(float bx0, float by0, float bx1, float by1, float barea, float threshold) const {
    constexpr std::size_t kBlock = 64;
    const std::size_t n = area.size();
    for (std::size_t begin = 0; begin < n; begin += kBlock) {
      const std::size_t end = std::min(n, begin + kBlock);
      int hit = 0;
      for (std::size_t i = begin; i < end; ++i) {
        const float w = std::max(0.0f, std::min(bx1, x1[i]) - std::max(bx0, x0[i]));
        const float h = std::max(0.0f, std::min(by1, y1[i]) - std::max(by0, y0[i]));
        const float inter = w * h;
        hit |= inter > threshold * (barea + area[i] - inter);
      }
      if (hit) return true;
    }
    return false;
  }

  void add(const float* box, float box_area) {
    min_area = std::min(min_area, box_area);
    max_area = std::max(max_area, box_area);
    x0.push_back(box[0]);
    y0.push_back(box[1]);
    x1.push_back(box[2]);
    y1.push_back(box[3]);
    area.push_back(box_area);
  }
};

// Boxes of an area under this cannot exceed the threshold with a box of `area`, since IoU is at
// most smaller area / larger area; 0.999 leaves room for rounding.
float smallest_comparable(float area, float iou_threshold) { return area * iou_threshold * 0.999f; }

void check(Span<const float> boxes, Span<const float> scores, float iou_threshold) {
  if (boxes.size() != 4 * scores.size()) {
    throw std::invalid_argument("boxes must have 4 values per score");
  }
  if (!(iou_threshold >= 0.0f && iou_threshold <= 1.0f)) {
    throw std::invalid_argument("iou_threshold must lie in [0, 1]");
  }
  for (std::size_t i = 0; i < scores.size(); ++i) {
    const float* b = &boxes[4 * i];
    if (!std::isfinite(scores[i]) || !std::isfinite(b[0]) || !std::isfinite(b[1]) ||
        !std::isfinite(b[2]) || !std::isfinite(b[3])) {
      throw std::invalid_argument("boxes and scores must be finite");
    }
    if (b[0] > b[2] || b[1] > b[3]) {
      throw std::invalid_argument("boxes must be (x0, y0, x1, y1) with x0 <= x1 and y0 <= y1");
    }
  }
}

}  // namespace

std::vector<std::int64_t> non_maximum_suppression(Span<const float> boxes, Span<const float> scores,
                                                  float iou_threshold, std::size_t max_kept) {
  check(boxes, scores, iou_threshold);
  const std::size_t n = scores.size();
  std::vector<std::int64_t> order(n);
  std::iota(order.begin(), order.end(), std::int64_t{0});
  const auto better = [&](std::int64_t a, std::int64_t b) {
    const float sa = scores[static_cast<std::size_t>(a)];
    const float sb = scores[static_cast<std::size_t>(b)];
    return sa != sb ? sa > sb : a < b;
  };
  if (iou_threshold >= 1.0f) {  // no IoU exceeds 1: only the best max_kept are wanted
    const std::size_t kept = std::min(n, max_kept);
    std::partial_sort(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(kept), order.end(),
                      better);
    order.resize(kept);
    return order;
  }
  std::sort(order.begin(), order.end(), better);

  std::vector<std::int64_t> kept;
  std::vector<Group> groups;
  for (const std::int64_t candidate : order) {
    if (kept.size() >= max_kept) break;
    const float* b = &boxes[4 * static_cast<std::size_t>(candidate)];
    const float area = (b[2] - b[0]) * (b[3] - b[1]);
    bool suppressed = false;
    Group* home = nullptr;
    for (Group& group : groups) {
      if (area > group.min_area * 0.999f && area < group.max_area * 1.001f) home = &group;
      if (area < smallest_comparable(group.min_area, iou_threshold) ||
          group.max_area < smallest_comparable(area, iou_threshold)) {
        continue;
      }
      if (group.suppresses(b[0], b[1], b[2], b[3], area, iou_threshold)) {
        suppressed = true;
        break;
      }
    }
    if (suppressed) continue;
    if (home == nullptr) {
      groups.push_back(Group{area, area, {}, {}, {}, {}, {}});
      home = &groups.back();
    }
    home->add(b, area);
    kept.push_back(candidate);
  }
  return kept;
}

}  // namespace delfsearch
