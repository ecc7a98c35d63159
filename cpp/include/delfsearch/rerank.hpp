// Candidates of a query compared once more, by their 8-bit descriptors (quantizer.hpp).
//
// A code of dimension i stands for lower[i] + step[i] * code in float32. Differences to the query,
// their squares and sums are in double precision: eight sums of every eighth dimension, added
// pairwise. The result is rounded to float32; the same bits on every instruction set. Rows may lie
// in a memory map: they are asked for a few candidates ahead.
//
// Cost of a candidate: a cache line or two from memory, and d products.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "delfsearch/span.hpp"

namespace delfsearch {

struct Reranked {
  std::vector<float> squared_distances;  // (m, k), rising, +inf where missing
  std::vector<std::int64_t> rows;        // (m, k), -1 where missing
};

// queries (m, d) row-major, finite; candidates (m, r): rows of exact (n, d), -1 for none, each at
// most once for a query; 1 <= k. Equal distances are ordered by row. Throws std::invalid_argument
// where sizes disagree or a candidate is out of range.
Reranked rerank(Span<const std::uint8_t> exact, Span<const float> lower, Span<const float> step,
                Span<const float> queries, Span<const std::int64_t> candidates, std::size_t k,
                int n_threads);

}  // namespace delfsearch
