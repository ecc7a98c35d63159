// Greedy non-maximum suppression of boxes over all pyramid levels together: the best-scoring box is
// kept, every box whose intersection over union with a kept one exceeds the threshold is dropped,
// and so on until max_kept are kept. Equal scores: the lower index first. Boxes are not clipped to
// the photo. O(n log n + n * kept); a kept box is only compared with candidates of an area so
// similar that the threshold can be exceeded at all, which leaves one pyramid level in most cases.
// All arithmetic is in float, in one order, so results do not depend on the machine.
// Source: Sec. 3.3, Table 2.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "delfsearch/span.hpp"

namespace delfsearch {

// boxes: n rows (x0, y0, x1, y1), x0 <= x1, y0 <= y1. scores: n. iou_threshold in [0, 1]; 1 keeps
// everything. Returns the kept indices, best score first. Throws std::invalid_argument where sizes
// disagree, a value is not finite, a box is inverted, or the threshold is out of range.
std::vector<std::int64_t> non_maximum_suppression(Span<const float> boxes, Span<const float> scores,
                                                  float iou_threshold, std::size_t max_kept);

}  // namespace delfsearch
