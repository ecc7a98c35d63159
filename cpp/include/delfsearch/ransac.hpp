// Seeded affine RANSAC between keypoint positions: how many one-to-one matches does one plausible
// affine map explain, for each of many candidate photos?
//
// Invariants. Positions closer than min_separation within a photo are one keypoint, and a keypoint
// counts once on either side: the inliers of a map are a one-to-one set, taken greedily by rising
// residual. A residual is |map(query) - database|, in pixels of the database photo. No returned map
// leaves the limits, and everything returned is recomputed from the map in double precision. What
// comes out for one candidate depends on its own matches, its id, the seed and the options only:
// not on the other candidates, their order, the number of threads, or the instruction set.
//
// Method. Hypotheses are drawn 64 at a time, half from pairs of matches (similarities), half from
// triples (affines), nearer descriptors more often; implausible ones are refused before any
// residual is computed. Scoring bounds the one-to-one count by the number of
// query keypoints with an inlier, a few bit operations on 64 matches; only hypotheses whose bound
// beats the best go on to the exact count and to local optimisation (refitting on one-to-one
// inliers). Drawing ends once a map with max(best, min_support) inliers would have been found with
// the given confidence, or after max_iterations draws.
// Cost: O(draws x matches / vector width) a candidate; memory O(matches) a thread.
// Source: Sec. 5.2 (RANSAC, score = inliers); Chum, Matas & Kittler 2003 (local optimisation).
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "delfsearch/affine.hpp"
#include "delfsearch/span.hpp"

namespace delfsearch {

struct RansacOptions {
  double max_error = 12.0;      // pixels of the database photo
  double min_separation = 1.0;  // pixels; nearer positions of one photo are one keypoint
  int max_iterations = 1024;    // draws a candidate
  double confidence = 0.99;     // of having found a map with min_support inliers, if there is one
  int min_support = 6;          // see above; smaller sets may be found but are not searched for
  AffineLimits limits;
  std::uint64_t seed = 0;
};

// Matches of all candidates one after the other; candidate i owns rows offsets[i]:offsets[i + 1].
struct RansacMatches {
  Span<const float> query_xy;           // (m, 2)
  Span<const float> database_xy;        // (m, 2)
  Span<const float> squared_distances;  // (m,)
  Span<const std::int64_t> offsets;     // (c + 1,)
  Span<const std::int64_t> ids;         // (c,), part of each candidate's seed
};

struct RansacResults {
  std::vector<std::int32_t> n_inliers;       // (c,), 0 where no map was found
  std::vector<double> affines;               // (c, 2, 3), identity where n_inliers is 0
  std::vector<std::int64_t> inlier_offsets;  // (c + 1,)
  std::vector<std::int64_t> inlier_rows;     // rows of the matches, rising within a candidate
  std::vector<std::int32_t> n_iterations;    // (c,), draws made
};

// Throws std::invalid_argument where sizes disagree, offsets are not those of the rows, or an
// option is out of range. Coordinates must be finite (one that is not is never an inlier).
RansacResults ransac_affine(const RansacMatches& matches, const RansacOptions& options,
                            int n_threads);

}  // namespace delfsearch
