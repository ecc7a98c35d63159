// Posting lists of product codes, and their scan (paper Sec. 5.4).
//
// Codes lie list after list, in blocks (product_code.hpp); a list's last block is filled up. A list
// may be cut into leaves of a fixed number of blocks, whose codes lie close to each other; of each
// leaf it is known which centroids occur in each part, so that no code in it is nearer to a query
// than the sum of the least entries of these. Leaves are visited in the order of that bound.
//
// Arithmetic. The distance of a query to a code is the sum of float32 table entries in the order of
// parts (lopq.hpp). The scan first compares sums of 8-bit entries that are rounded down, so that
// what they exclude is farther than the k-th neighbour so far; blocks that may hold something are
// computed in float32. The result is that of computing everything: the k smallest by (distance,
// place), whatever the instruction set, the number of threads and the other queries. That holds for
// max_leaves and eps as well: which leaves a query visits is settled by the query alone, its lists
// scanned in one order, and exactly, before each.
//
// Cost of a query and a list: a table (d^2 + d 2^bits products), then 64 codes for about n_parts
// shuffles and additions; up to 4 queries share the unpacking of a block.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "delfsearch/lopq.hpp"
#include "delfsearch/span.hpp"

namespace delfsearch {

// Borrowed arrays.
struct InvertedFileView {
  LopqView quantizer;
  Span<const std::uint64_t> first_block;  // (n_lists + 1), of each list
  Span<const std::uint32_t> sizes;        // (n_lists), codes
  Span<const std::uint8_t> blocks;
  std::size_t leaf_blocks = 0;           // 0: a list is one leaf
  Span<const std::uint64_t> first_leaf;  // (n_lists + 1); empty with leaf_blocks 0
  Span<const std::uint32_t> present;     // (n_leaves, n_parts, 2^bits / 32 or 1): bits of centroids

  std::size_t n_lists() const { return sizes.size(); }
  void check() const;
};

struct InvertedFileArrays {
  std::vector<std::uint64_t> first_block, first_leaf;
  std::vector<std::uint32_t> sizes, present;
  std::vector<std::uint8_t> blocks;
  std::vector<std::uint32_t> rows;  // (n), of each code, list after list; rising within a leaf
};

// Sorts n coded rows into lists. numbers (n, n_parts), lists (n), rows (n): what a code belongs to,
// its row, or its photo's number; they rise within a leaf, and within a list without leaves, and
// may repeat.
InvertedFileArrays fill_lists(const LopqView& quantizer, Span<const std::uint8_t> numbers,
                              Span<const std::uint32_t> lists, Span<const std::uint32_t> rows,
                              std::size_t leaf_blocks, int n_threads);

struct TakenCodes {
  std::vector<std::uint8_t> numbers;  // (n, n_parts)
  std::vector<std::uint32_t> lists;   // (n)
};

// What lists begin to end hold, in their order: merging needs nothing encoded anew.
TakenCodes take_lists(const InvertedFileView& file, std::size_t begin, std::size_t end,
                      int n_threads);

struct CodeNeighbours {
  std::vector<float> squared_distances;  // (m, k), +inf where missing
  std::vector<std::int64_t> places;  // (m, k), code number counted over blocks, -1 where missing
};

struct ScanOptions {
  std::size_t k = 64;
  std::size_t max_leaves = 0;  // visited of a list for a query; 0: all
  // Leaves are left out as well where no code in them can be nearer than the k-th of the query's
  // earlier lists, its distance (not squared) divided by 1 + eps. So the k-th found is at most 1 +
  // eps times as far as the k-th of all leaves. 0: only what changes nothing is left out. The
  // nearest list comes first, then the next 7 in their order in the file, then 56 ... Lists of one
  // leaf are scanned whole.
  double eps = 0.0;
  // One bit a place; others are never returned, and leaves without any are not visited. Empty: all.
  Span<const std::uint64_t> allowed;
  int n_threads = 1;
};

// queries (m, d) row-major; probes (m, n_probe): the lists to scan for each, best first, each at
// most once.
CodeNeighbours scan_lists(const InvertedFileView& file, Span<const float> queries,
                          Span<const std::uint32_t> probes, const ScanOptions& options);

}  // namespace delfsearch
