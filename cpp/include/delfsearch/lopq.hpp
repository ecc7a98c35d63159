// Product quantization of residuals, plain or locally optimized (Jegou et al. 2011; Kalantidis and
// Avrithis 2014; paper Sec. 5.4).
//
// A vector x goes to the nearest of n_lists coarse centroids c. Its residual x - c is turned by the
// list's rotation, which spreads the variance evenly over the parts (eigenvalue allocation), and
// each part is replaced by the nearest centroid of the list's codebook. A list with too little data
// shares a rotation and a codebook with the others. One list with centroid 0 and no rotation is a
// plain product quantizer; with a rotation an optimized one.
//
// The distance of a query to a code is that to the vector which the code stands for, taken in the
// list's own axes: sum over parts, in their order, of table entries in float32 (asymmetric: the
// query is not encoded). The same bits on every instruction set.
// A rotation of 8 bits is not quite orthogonal: there the distance is some thousandths off that of
// the vectors.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "delfsearch/aligned.hpp"
#include "delfsearch/product_code.hpp"
#include "delfsearch/span.hpp"

namespace delfsearch {

// Matrices of one size, one after another: float32, or, in a quarter of the memory, 8-bit whole
// numbers times a step of each matrix. Borrowed.
struct MatricesView {
  Span<const float> values;
  Span<const std::int8_t> whole;  // instead of values
  Span<const float> steps;        // one for each matrix of `whole`
};

// Borrowed arrays (a memory map, say).
struct LopqView {
  ProductCode code;
  std::size_t d = 0;
  Span<const float> coarse;  // (n_lists, d)
  // (n_rotations, d, padded d), column o gives output o; in 8 bits (n_rotations, d, d).
  MatricesView rotations;
  Span<const std::int32_t> rotation_of;  // (n_lists), -1 for none
  MatricesView codebooks;                // (n_codebooks, n_parts, d / n_parts, n_centroids)
  Span<const std::int32_t> codebook_of;  // (n_lists)

  std::size_t n_lists() const { return d == 0 ? 0 : coarse.size() / d; }
  std::size_t part_dimension() const { return d / code.n_parts; }
  std::size_t table_size() const { return code.n_parts * code.n_centroids(); }
  // Throws std::invalid_argument where sizes disagree or a number is out of range.
  void check() const;
};

inline std::size_t padded_outputs(std::size_t d) { return (d + 15) / 16 * 16; }

struct Matrices {
  std::vector<float> values;
  std::vector<std::int8_t> whole;
  std::vector<float> steps;

  MatricesView view() const { return {values, whole, steps}; }
};

struct LopqArrays {
  ProductCode code;
  std::size_t d = 0;
  std::vector<float> coarse;
  Matrices rotations, codebooks;
  std::vector<std::int32_t> rotation_of, codebook_of;
  std::size_t n_iterations = 0;  // of k-means, the most that a codebook took

  LopqView view() const {
    return {code, d, coarse, rotations.view(), rotation_of, codebooks.view(), codebook_of};
  }
};

struct LopqOptions {
  ProductCode code;
  enum class Rotation { kNone, kShared, kLocal } rotation = Rotation::kLocal;
  std::size_t min_rotation_rows = 400;    // of a list, for a rotation of its own
  std::size_t min_codebook_rows = 1024;   // of a list, for a codebook of its own; 0: never
  std::size_t max_rows_per_list = 16384;  // learned from, at equal spacing
  std::size_t max_shared_rows = 262144;   // likewise, for what lists share
  std::size_t max_iterations = 25;        // of k-means
  std::size_t batch_size = 0;             // rows of its mini-batches; 0: all rows
  // Rotations and codebooks in 8 bits, codebooks learned behind the rounded rotations. There are no
  // rounds then.
  bool rounded = false;
  int rounds = 0;  // of alternating optimization (Ge et al. 2013) of shared rotation and codebook
  std::uint64_t seed = 0;
  int n_threads = 1;
};

// X (n, d) row-major, n >= n_centroids; lists (n): of each row; coarse (n_lists, d). n_parts must
// divide d.
LopqArrays train_lopq(Span<const float> X, Span<const std::uint32_t> lists,
                      Span<const float> coarse, std::size_t d, const LopqOptions& options);

// (n, n_parts) numbers of the rows of X (n, d), each in its list.
std::vector<std::uint8_t> encode(const LopqView& quantizer, Span<const float> X,
                                 Span<const std::uint32_t> lists, int n_threads);

// (n, d) vectors that numbers stand for.
std::vector<float> decode(const LopqView& quantizer, Span<const std::uint8_t> numbers,
                          Span<const std::uint32_t> lists);

// Squared distances (m, n) of queries (m, d) to what numbers (n, n_parts) stand for in their lists
// (n): sums of table entries, the same bits as the scan of posting lists. Cost: m times as many
// tables as lists occur, and m n n_parts additions.
std::vector<float> code_distances(const LopqView& quantizer, Span<const float> queries,
                                  Span<const std::uint8_t> numbers, Span<const std::uint32_t> lists,
                                  int n_threads);

// The rotation and the codebook of a list in float32: where they are, or made of 8 bits in room of
// its own.
class ListAxes {
 public:
  explicit ListAxes(const LopqView& quantizer);
  ListAxes(const ListAxes&) = delete;
  ListAxes& operator=(const ListAxes&) = delete;

  void open(std::size_t list);
  void ask_for(std::size_t list) const;  // that it be in the cache when it is opened
  std::size_t list() const { return list_; }
  const float* rotation() const { return rotation_; }  // (d, padded d), null for none
  const float* codebook() const { return codebook_; }  // (n_parts, d / n_parts, n_centroids)

 private:
  const LopqView& quantizer_;
  AlignedVector<float> own_rotation_, own_codebook_;
  std::size_t list_;
  std::int32_t rotation_number_ = -1, codebook_number_ = -1;
  const float* rotation_ = nullptr;
  const float* codebook_ = nullptr;
};

// Squared distances of each part of each of n rows to the centroids of the list that `axes` has
// open: tables (n, n_parts, n_centroids), and the least of each part: least (n, n_parts). scratch
// has table_scratch(q, n) floats. Rows share the fetching of the rotation.
void distance_tables(const LopqView& quantizer, const ListAxes& axes, const float* const* rows,
                     std::size_t n, float* scratch, float* tables, float* least);

inline std::size_t table_scratch(const LopqView& quantizer, std::size_t n) {
  return n * (quantizer.d + padded_outputs(quantizer.d));
}

}  // namespace delfsearch
