// Which feature of a photo a query feature found, where posting lists name photos only.
//
// Lists of photo numbers take half the bits of lists of feature numbers, and most of what a search
// finds is never looked at: for the photos that are shortlisted the features are found again among
// their 8-bit descriptors, which are read from disk. The t-th match of a query feature in a photo
// is the t-th nearest of the photo's features. Cost: features of the photo times d for each query
// feature matched in it.
#pragma once

#include <cstdint>
#include <vector>

#include "delfsearch/quantizer.hpp"
#include "delfsearch/span.hpp"

namespace delfsearch {

struct Rematched {
  std::vector<std::int64_t> rows;        // (p,)
  std::vector<float> squared_distances;  // (p,), to what the 8 bits stand for
};

// codes (n, d); queries (m, d). Pair i is of query query_of[i] and the photo of rows begin[i] to
// end[i], at least one; pairs of a photo, and in it those of a query, follow each other. Ties go to
// the lower row.
Rematched rematch(const Quantizer& quantizer, Span<const std::uint8_t> codes,
                  Span<const float> queries, Span<const std::int32_t> query_of,
                  Span<const std::int64_t> begin, Span<const std::int64_t> end, int n_threads);

}  // namespace delfsearch
