// Balanced k-means over the leaves of a tree: the cuts of a KD-tree are where it begins.
//
// A cut serves all rows of a node alike, so that many rows end up on the far side of a leaf border
// from their true neighbours. A round computes the mean of every leaf, and the rows choose again:
// each applies to its nearest leaf, a leaf keeps the nearest rows that it has room for, and the
// others apply to their next one (deferred acceptance: the outcome is unique, so it depends on no
// order). Leaves keep their sizes and their places, so nothing else of the layout changes.
// Two rounds halve the leaves that reach a given recall (docs/kdtree.md).
//
// Rows choose among the kNearest nearest of the kNearLeaves leaves around their own. Leaves are
// taken in runs, so that the cost stays near linear: O(n d) a round, about a tenth of a second for
// 400,000 rows of 40 dimensions; memory is some 100 bytes a row of a run.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "delfsearch/quantizer.hpp"
#include "delfsearch/span.hpp"

namespace delfsearch::kdtree {

// order holds the rows of codes (n, d), those of leaf l at [l * leaf_size, (l + 1) * leaf_size);
// it is rearranged, rows rising within a leaf. norms: of each row of codes, as NormTable gives
// them. The result does not depend on n_threads.
void refine_leaves(Span<const std::uint8_t> codes, const Quantizer& quantizer,
                   const std::vector<float>& norms, std::size_t leaf_size, int rounds,
                   int n_threads, std::vector<std::uint32_t>& order);

}  // namespace delfsearch::kdtree
