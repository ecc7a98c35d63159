// From the places of codes, which a scan of posting lists finds, to the ids that they belong to.
//
// A place lies in one of the lists that its query probed, so that only these are looked through.
// Cost of a place: a comparison with each of few probed lists, or else its share of a sort, and the
// reading of one packed id.
#pragma once

#include <cstdint>
#include <vector>

#include "delfsearch/inverted_file.hpp"
#include "delfsearch/packed_ids.hpp"
#include "delfsearch/span.hpp"

namespace delfsearch {

// Ids packed leaf by leaf, or list by list without leaves.
struct ListIdsView {
  PackedIdsView ids;
  Span<const std::uint64_t> firsts;  // (n_sequences + 1), codes before each
};

// found: k for each of m queries, nearest first; probes (m, n_probe) as in scan_lists. Returns the
// ids (m, k), -1 where there is no place. Where distances are equal, ids rise.
std::vector<std::int64_t> rows_of_places(const InvertedFileView& file, const ListIdsView& ids,
                                         Span<const std::uint32_t> probes, std::size_t m,
                                         Span<const float> squared_distances,
                                         Span<const std::int64_t> places, int n_threads);

}  // namespace delfsearch
