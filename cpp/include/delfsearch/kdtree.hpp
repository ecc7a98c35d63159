// A KD-tree over 8-bit codes, laid out and searched for batches of queries (paper Sec. 5.2).
//
// Layout. The tree splits at ranks that are multiples of leaf_size, so leaf l owns the rows
// [l * leaf_size, (l + 1) * leaf_size) of the leaf order and no node, offset or plane is stored.
// Rows lie in blocks of 16, each block interleaved by 4 dimensions: (block, dimension / 4, row %
// 16, dimension % 4), so that one vpdpbusd does 4 dimensions of 16 rows. Dimensions are padded with
// zeros to a multiple of 4, rows to a multiple of 16 with norm +inf. Beside the codes a row has one
// float, the squared norm of its decoded vector seen from the middle of the quantizer's range
// (+inf: removed, never returned), and its id, the number of the row given to build_kdtree, in
// 3 bytes (4 above 2^24 rows). A leaf has the rounded mean of its codes, laid out like rows; a
// search may be given other norms, +inf for rows and leaves that it is to pass over.
//
// Arithmetic. The distance of a query q to a row of codes c is defined as
//   mid_i = lower_i + 128 step_i,  r_i = q_i - mid_i,  v_i = r_i step_i          (double)
//   unit = max(max|v_i| / 32512, sum|v_i| / 2^23),  V_i = rint(v_i / unit)        (16-bit integers)
//   D = max(0, (norm - float(2 unit) * float(sum V_i (c_i - 128))) + float(sum r_i^2))
// whose sum is an exact 32-bit integer and whose four float operations are rounded one by one:
// every instruction set, every thread count and every order of visiting give the same bytes.
// Neighbours are ordered by (D, id).
//
// Search ranks all leaves by the distance from the query to their mean (taken with the upper 8 bits
// of V), visits the best max_leaves, and scans each leaf once for all queries of the batch that
// want it. Visiting all leaves is brute force over the codes. Cost per query: n / leaf_size +
// max_leaves * leaf_size 8-bit comparisons at some billions a second. Build: O(n log n (d / 64 +
// log n)).
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "delfsearch/quantizer.hpp"
#include "delfsearch/span.hpp"

namespace delfsearch {

struct KdTreeArrays {
  std::vector<std::uint8_t> codes;       // n_blocks * 16 * padded d
  std::vector<float> norms;              // n_blocks * 16
  std::vector<std::uint8_t> ids;         // n * id_bytes, little-endian
  std::vector<std::uint8_t> leaf_codes;  // like codes, one row per leaf
  std::vector<float> leaf_norms;
};

// Borrowed arrays (a memory map, say); they must outlive every call made with the view.
struct KdTreeView {
  std::size_t n = 0;
  std::size_t leaf_size = 1;
  Span<const float> lower, step;  // the quantizer; d values each
  Span<const std::uint8_t> codes;
  Span<const float> norms;
  Span<const std::uint8_t> ids;
  Span<const std::uint8_t> leaf_codes;
  Span<const float> leaf_norms;

  std::size_t dimension() const { return lower.size(); }
  std::size_t n_leaves() const { return (n + leaf_size - 1) / leaf_size; }
  // Throws std::invalid_argument where a size disagrees or an id is not below n: what a damaged
  // file could hold. O(n).
  void check() const;
};

constexpr std::size_t kKdTreeBlock = 16;
constexpr std::size_t kMaxRows = (std::size_t{1} << 31) - 64;
constexpr std::size_t kMaxDimension = 65536;

inline std::size_t padded_dimension(std::size_t d) { return (d + 3) / 4 * 4; }
inline std::size_t padded_rows(std::size_t n) {
  return (n + kKdTreeBlock - 1) / kKdTreeBlock * kKdTreeBlock;
}
inline std::size_t id_bytes(std::size_t n) { return n <= (std::size_t{1} << 24) ? 3 : 4; }

// The id at a place of the leaf order; bytes = id_bytes(tree.n).
inline std::uint32_t read_id(const KdTreeView& tree, std::size_t bytes, std::size_t place) {
  const std::uint8_t* p = tree.ids.data() + place * bytes;
  std::uint32_t id = static_cast<std::uint32_t>(p[0]) | static_cast<std::uint32_t>(p[1]) << 8 |
                     static_cast<std::uint32_t>(p[2]) << 16;
  if (bytes == 4) id |= static_cast<std::uint32_t>(p[3]) << 24;
  return id;
}

// How a node orders its rows before it is cut in two at a rank. kAxis: along the dimension of the
// largest variance, the textbook's KD-tree. kMeans: along the line between the means of the two
// halves (balanced 2-means, started on the principal axis); needs half as many leaves on real
// descriptors.
enum class Splits { kMeans, kAxis };

// codes is (n, d) row-major, n >= 1. refine_steps: rounds of balanced k-means that the leaves go
// through after the cuts (0: none); leaves of fewer than 16 rows keep their cells. The result
// depends on all of these, but not on n_threads (< 1: all).
KdTreeArrays build_kdtree(Span<const std::uint8_t> codes, const Quantizer& quantizer,
                          std::size_t leaf_size, Splits splits, int refine_steps, int n_threads);

// (end - begin, d) row-major codes of the ids in [begin, end), in their order. Reads the ids up to
// the last one wanted, but only the codes that are wanted: O(n + (end - begin) d). (An inverse of
// the ids would save the scan, about 2 ms per million rows, for 3 or 4 bytes a row.)
std::vector<std::uint8_t> unpack_codes(const KdTreeView& tree, std::size_t begin, std::size_t end);

struct Neighbours {
  std::vector<float> squared_distances;  // (m, k), +inf where missing
  std::vector<std::int64_t> ids;         // (m, k), -1 where missing
};

// queries is (m, d) row-major, finite, at most Quantizer::kMaxMagnitude; k, max_leaves >= 1.
Neighbours search_kdtree(const KdTreeView& tree, Span<const float> queries, std::size_t k,
                         std::size_t max_leaves, int n_threads);

}  // namespace delfsearch
