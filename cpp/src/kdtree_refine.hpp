// Balanced k-means over the leaves of a tree: the cuts of a KD-tree are where it begins.
//
// A cut serves all rows of a node alike, so that many rows end up on the far side of a leaf border
// from their true neighbours. A round computes the mean of every leaf, and the rows choose again:
// each applies to its nearest leaf, a leaf keeps the nearest rows that it has room for, and the
// others apply to their next one (deferred acceptance: the outcome is unique, so it depends on no
// order). Leaves keep their sizes and their places, so nothing else of the layout changes.
// Two rounds halve the leaves that reach a given recall on clustered data (docs/kdtree.md).
//
// Rows choose among the kNearest nearest of the kNearLeaves leaves around their own. Of rows that
// all of these refuse, few go to the nearest leaf with room, many to the next one in the order of
// the tree. Leaves are taken in runs, so that the cost stays near linear: O(n d) a round, some two
// tenths of a second for 400,000 rows of 40 dimensions with AVX-512; memory is about d + 60 bytes a
// row of a run. Left alone: fewer than 4 dimensions, leaves of fewer than 16 or more than 2^20
// rows. Matching rows with leaves is serial, the rest is shared among threads.
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
