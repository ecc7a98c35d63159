#include "delfsearch/aggregate.hpp"

#include <algorithm>
#include <limits>
#include <numeric>
#include <stdexcept>

namespace delfsearch {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

void check_shape(std::size_t have, std::size_t lists, std::size_t k, const char* what) {
  if (have != lists * k) throw std::invalid_argument(what);
}

// Photos seen so far, numbered in the order of appearance. Open addressing at most half full.
class SeenPhotos {
 public:
  SeenPhotos(std::size_t most, std::size_t n_photos) {
    std::size_t size = 64;
    while (size < 2 * most) size *= 2;
    mask_ = size - 1;
    // Few enough photos have a slot each, and nothing to hash.
    direct_ = n_photos <= size;
    slots_.assign(direct_ ? n_photos : size, -1);
  }

  std::int32_t number_of(std::int32_t photo) {
    // Fibonacci hashing: neighbouring photos must not share a chain.
    std::size_t slot = direct_ ? static_cast<std::uint32_t>(photo)
                               : (static_cast<std::uint32_t>(photo) * 2654435769U >> 7) & mask_;
    while (slots_[slot] >= 0) {
      if (photos[static_cast<std::size_t>(slots_[slot])] == photo) return slots_[slot];
      slot = (slot + 1) & mask_;
    }
    slots_[slot] = static_cast<std::int32_t>(photos.size());
    photos.push_back(photo);
    return slots_[slot];
  }

  std::vector<std::int32_t> photos;

 private:
  std::vector<std::int32_t> slots_;
  std::size_t mask_;
  bool direct_;
};

}  // namespace

std::int32_t PhotoRows::photo_of(std::int64_t row) const {
  const auto bucket = static_cast<std::size_t>(row >> kBucketShift);
  auto photo = static_cast<std::size_t>(first[bucket]);
  // Photos are about as long as a bucket, so the answer is a step or two away; a run of photos
  // without features would make that walk long, hence the search beyond a few steps.
  for (int step = 0; step < 4; ++step, ++photo) {
    if (row < offsets[photo + 1]) return static_cast<std::int32_t>(photo);
  }
  const std::size_t last = bucket + 1 < first.size() ? static_cast<std::size_t>(first[bucket + 1])
                                                     : image_ids.size() - 1;
  const auto* end = std::upper_bound(offsets.begin() + photo, offsets.begin() + last + 1, row);
  return static_cast<std::int32_t>(end - offsets.begin() - 1);
}

std::vector<std::int32_t> first_photo_of_buckets(Span<const std::int64_t> offsets) {
  if (offsets.empty() || offsets[0] != 0) throw std::invalid_argument("offsets must begin with 0");
  if (offsets.size() > static_cast<std::size_t>(std::numeric_limits<std::int32_t>::max())) {
    throw std::invalid_argument("at most 2**31 - 2 photos");
  }
  const std::int64_t n_rows = offsets[offsets.size() - 1];
  constexpr std::int64_t kBucket = std::int64_t{1} << PhotoRows::kBucketShift;
  std::vector<std::int32_t> first;
  std::size_t photo = 0;
  for (std::int64_t row = 0; row < n_rows; row += kBucket) {
    while (offsets[photo + 1] <= row) ++photo;
    first.push_back(static_cast<std::int32_t>(photo));
  }
  return first;
}

NeighborLists filter_neighbors(Span<const std::int64_t> rows, Span<const float> squared_distances,
                               std::size_t n_queries, std::size_t k,
                               Span<const std::int64_t> excluded_begin,
                               Span<const std::int64_t> excluded_end) {
  const std::size_t fetched = n_queries == 0 ? 0 : rows.size() / n_queries;
  check_shape(rows.size(), n_queries, fetched, "rows must be (m, fetched)");
  check_shape(squared_distances.size(), n_queries, fetched, "squared_distances must be like rows");
  check_shape(excluded_begin.size(), 1, excluded_end.size(), "excluded ranges must be pairs");
  NeighborLists out;
  out.rows.assign(n_queries * k, -1);
  out.squared_distances.assign(n_queries * k, kInfinity);
  out.kept.assign(n_queries, 0);
  for (std::size_t q = 0; q < n_queries; ++q) {
    std::size_t kept = 0;
    for (std::size_t j = 0; j < fetched && kept < k; ++j) {
      const std::int64_t row = rows[q * fetched + j];
      bool drop = row < 0;
      for (std::size_t r = 0; r < excluded_begin.size() && !drop; ++r) {
        drop = row >= excluded_begin[r] && row < excluded_end[r];
      }
      if (drop) continue;
      out.rows[q * k + kept] = row;
      out.squared_distances[q * k + kept] = squared_distances[q * fetched + j];
      ++kept;
    }
    out.kept[q] = static_cast<std::int64_t>(kept);
  }
  return out;
}

NeighborLists merge_neighbors(Span<const std::int64_t> rows, Span<const float> squared_distances,
                              std::size_t n_segments, std::size_t n_queries, std::size_t k,
                              const PhotoRows& photos) {
  check_shape(rows.size(), n_segments * n_queries, k, "rows must be (segments, m, k)");
  check_shape(squared_distances.size(), n_segments * n_queries, k,
              "squared_distances must be (segments, m, k)");
  NeighborLists out;
  out.rows.assign(n_queries * k, -1);
  out.squared_distances.assign(n_queries * k, kInfinity);
  out.kept.assign(n_queries, 0);
  std::vector<std::size_t> next(n_segments);
  for (std::size_t q = 0; q < n_queries; ++q) {
    std::fill(next.begin(), next.end(), 0);
    std::size_t kept = 0;
    for (; kept < k; ++kept) {
      std::size_t best = n_segments;
      std::int64_t best_row = -1;
      float best_distance = kInfinity;
      for (std::size_t s = 0; s < n_segments; ++s) {
        if (next[s] == k) continue;
        const std::size_t at = (s * n_queries + q) * k + next[s];
        const std::int64_t row = rows[at];
        if (row < 0) continue;
        const float distance = squared_distances[at];
        bool nearer = best == n_segments || distance < best_distance;
        if (!nearer && distance == best_distance) {
          // Two segments never hold the same photo, so the ids differ.
          nearer = photos.image_ids[static_cast<std::size_t>(photos.photo_of(row))] <
                   photos.image_ids[static_cast<std::size_t>(photos.photo_of(best_row))];
        }
        if (nearer) {
          best = s;
          best_row = row;
          best_distance = distance;
        }
      }
      if (best == n_segments) break;
      out.rows[q * k + kept] = best_row;
      out.squared_distances[q * k + kept] = best_distance;
      ++next[best];
    }
    out.kept[q] = static_cast<std::int64_t>(kept);
  }
  return out;
}

GroupedMatches group_by_photo(Span<const std::int64_t> rows, Span<const float> squared_distances,
                              std::size_t n_queries, std::size_t k, const PhotoRows& photos,
                              std::size_t max_candidates, bool weigh_by_distance) {
  check_shape(rows.size(), n_queries, k, "rows must be (m, k)");
  check_shape(squared_distances.size(), n_queries, k, "squared_distances must be (m, k)");

  SeenPhotos seen(rows.size(), photos.image_ids.size());
  std::vector<std::int32_t> number(rows.size(), -1);  // of the photo, per pair
  std::vector<std::int64_t> pairs;                    // per photo seen
  std::vector<std::int64_t> last_query;
  std::vector<double> votes;
  for (std::size_t q = 0; q < n_queries; ++q) {
    float farthest = 0.0F;
    if (weigh_by_distance) {
      for (std::size_t j = 0; j < k; ++j) {
        if (rows[q * k + j] >= 0) farthest = std::max(farthest, squared_distances[q * k + j]);
      }
    }
    for (std::size_t j = 0; j < k; ++j) {
      const std::size_t at = q * k + j;
      if (rows[at] < 0) continue;
      const auto n =
          static_cast<std::size_t>(number[at] = seen.number_of(photos.photo_of(rows[at])));
      if (n == pairs.size()) {
        pairs.push_back(0);
        last_query.push_back(-1);
        votes.push_back(0.0);
      }
      ++pairs[n];
      if (last_query[n] == static_cast<std::int64_t>(q)) continue;
      last_query[n] = static_cast<std::int64_t>(q);
      // Lists are sorted, so a photo's first neighbour here is its nearest.
      votes[n] += !weigh_by_distance ? 1.0
                  : farthest > 0.0F  ? 1.0 - double{squared_distances[at]} / double{farthest}
                                     : 1.0;
    }
  }

  const auto id_of = [&](std::int32_t n) {
    return photos.image_ids[static_cast<std::size_t>(seen.photos[static_cast<std::size_t>(n)])];
  };
  std::vector<std::int32_t> order(pairs.size());
  std::iota(order.begin(), order.end(), 0);
  const std::size_t n_candidates = std::min(max_candidates, order.size());
  std::partial_sort(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(n_candidates),
                    order.end(), [&](std::int32_t a, std::int32_t b) {
                      const double va = votes[static_cast<std::size_t>(a)];
                      const double vb = votes[static_cast<std::size_t>(b)];
                      return va != vb ? va > vb : id_of(a) < id_of(b);
                    });

  GroupedMatches out;
  out.offsets.push_back(0);
  std::vector<std::int64_t> cursor(pairs.size(), -1);  // where the photo's next pair goes
  for (std::size_t c = 0; c < n_candidates; ++c) {
    const auto n = static_cast<std::size_t>(order[c]);
    out.image_ids.push_back(id_of(order[c]));
    cursor[n] = out.offsets.back();
    out.offsets.push_back(out.offsets.back() + pairs[n]);
  }
  const auto total = static_cast<std::size_t>(out.offsets.back());
  out.query_indices.resize(total);
  out.database_indices.resize(total);
  out.rows.resize(total);
  out.squared_distances.resize(total);
  for (std::size_t at = 0; at < rows.size(); ++at) {
    if (number[at] < 0) continue;
    const auto n = static_cast<std::size_t>(number[at]);
    if (cursor[n] < 0) continue;
    const auto to = static_cast<std::size_t>(cursor[n]++);
    out.query_indices[to] = static_cast<std::int32_t>(at / k);
    out.rows[to] = rows[at];
    out.database_indices[to] = static_cast<std::int32_t>(
        rows[at] - photos.offsets[static_cast<std::size_t>(seen.photos[n])]);
    out.squared_distances[to] = squared_distances[at];
  }
  return out;
}

}  // namespace delfsearch
