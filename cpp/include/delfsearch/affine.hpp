// Affine maps of the plane, what makes one implausible, and their closed-form least squares.
// An affine maps (x, y) to (a x + b y + c, d x + e y + f). With singular values s1 >= s2 of
// [a b; d e], scale = sqrt(s1 s2) and stretch = s1 / s2 (1 for a similarity; shear and uneven
// scaling both raise it). No SVD is needed to bound it: s1/s2 + s2/s1 = (a2+b2+d2+e2) / det.
// Fits are centred in double precision and cost O(n); they need no matrix library.
// Source: normal equations of 2-D affine and similarity regression.
#pragma once

#include <array>
#include <cstddef>
#include <optional>

#include "delfsearch/span.hpp"

namespace delfsearch {

struct Affine {
  double a = 1, b = 0, c = 0;
  double d = 0, e = 1, f = 0;

  double det() const { return a * e - b * d; }
};

struct AffineLimits {
  double min_scale = 0.125;  // smallest and largest sqrt(det)
  double max_scale = 8.0;
  double max_stretch = 4.0;         // largest ratio of the singular values
  double max_rotation_deg = 180.0;  // largest turn of the nearest rotation, 180 = any
};

// True where the map is finite, keeps orientation and lies within the limits.
bool within_limits(const Affine& map, const AffineLimits& limits);

struct PointPair {
  double x, y;  // in the first photo
  double u, v;  // in the second
};

// Least squares of (u, v) on (x, y); nullopt where the points do not determine it (fewer than
// three, or all on one line).
std::optional<Affine> fit_affine(Span<const PointPair> pairs);

// Least-squares similarity (rotation, one scale, translation); nullopt where all points coincide.
std::optional<Affine> fit_similarity(Span<const PointPair> pairs);

}  // namespace delfsearch
