// From the neighbours of each query descriptor to putative matches grouped by database photo.
//
// Descriptors are numbered by row over all segments; photo p owns rows [offsets[p], offsets[p +
// 1]). A missing neighbour is row -1. Each query descriptor votes once for every photo among its
// neighbours, however many of its neighbours that photo holds; all its pairs are kept. Ties in the
// votes go to the lower image id. O(pairs) with a hash table of the photos seen, whatever the size
// of the collection. Source: Sec. 5.2 (matches aggregated per database image).
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "delfsearch/span.hpp"

namespace delfsearch {

// Finds the photo of a row. `first` holds, for every bucket of 256 rows, the photo of its first
// row: one lookup and a short search instead of a binary search over all photos.
struct PhotoRows {
  static constexpr int kBucketShift = 8;
  Span<const std::int64_t> offsets;    // (photos + 1,), rising from 0
  Span<const std::int64_t> image_ids;  // (photos,)
  Span<const std::int32_t> first;      // (ceil(rows / 256),)

  std::int32_t photo_of(std::int64_t row) const;
};

std::vector<std::int32_t> first_photo_of_buckets(Span<const std::int64_t> offsets);

struct NeighborLists {
  std::vector<std::int64_t> rows;        // (m, k), -1 where missing
  std::vector<float> squared_distances;  // (m, k), +inf where missing
  std::vector<std::int64_t> kept;        // (m,), neighbours that are not missing
};

// Drops the neighbours in the given row ranges and keeps the first k of the others, in order.
NeighborLists filter_neighbors(Span<const std::int64_t> rows, Span<const float> squared_distances,
                               std::size_t n_queries, std::size_t k,
                               Span<const std::int64_t> excluded_begin,
                               Span<const std::int64_t> excluded_end);

// Merges the sorted lists of several segments, (segments, m, k), into the k nearest of all. Equal
// distances are ordered by image id, then row: the order that one segment of all photos gives.
NeighborLists merge_neighbors(Span<const std::int64_t> rows, Span<const float> squared_distances,
                              std::size_t n_segments, std::size_t n_queries, std::size_t k,
                              const PhotoRows& photos);

struct GroupedMatches {
  std::vector<std::int64_t> image_ids;  // (c,), most votes first
  std::vector<std::int64_t> offsets;    // (c + 1,)
  std::vector<std::int32_t> query_indices;
  std::vector<std::int32_t> database_indices;  // within the photo
  std::vector<std::int64_t> rows;
  std::vector<float> squared_distances;
};

// A vote counts 1, or where weigh_by_distance is set 1 - d / d_k for the photo's nearest neighbour
// at d, d_k being the farthest neighbour of that query descriptor.
GroupedMatches group_by_photo(Span<const std::int64_t> rows, Span<const float> squared_distances,
                              std::size_t n_queries, std::size_t k, const PhotoRows& photos,
                              std::size_t max_candidates, bool weigh_by_distance);

}  // namespace delfsearch
