// Sorting of coded rows into lists and leaves.
#include <algorithm>
#include <numeric>
#include <stdexcept>

#include "delfsearch/inverted_file.hpp"
#include "delfsearch/parallel.hpp"

namespace delfsearch {
namespace {

// Cuts the rows of a list into leaves of leaf_size, as a KD-tree over what their codes stand for:
// along the dimension of the largest variance, at the multiple of leaf_size next to the middle.
class LeafCutter {
 public:
  LeafCutter(const LopqView& quantizer, const std::uint8_t* numbers, std::size_t list,
             std::size_t leaf_size)
      : numbers_(numbers),
        m_(quantizer.code.n_parts),
        k_(quantizer.code.n_centroids()),
        part_(quantizer.part_dimension()),
        leaf_size_(leaf_size),
        book_(quantizer.codebooks.data() +
              static_cast<std::size_t>(quantizer.codebook_of[list]) * quantizer.d * k_) {}

  void cut(std::uint64_t* rows, std::size_t n) const {
    if (n <= leaf_size_) {
      std::sort(rows, rows + n);
      return;
    }
    const std::size_t axis = widest(rows, n);
    const std::size_t leaves = (n + leaf_size_ - 1) / leaf_size_;
    const std::size_t half = leaves / 2 * leaf_size_;
    std::nth_element(rows, rows + half, rows + n, [&](std::uint64_t a, std::uint64_t b) {
      const float va = value(a, axis), vb = value(b, axis);
      return va != vb ? va < vb : a < b;
    });
    cut(rows, half);
    cut(rows + half, n - half);
  }

 private:
  const std::uint8_t* numbers_;
  std::size_t m_, k_, part_, leaf_size_;
  const float* book_;

  float value(std::uint64_t row, std::size_t axis) const {
    return book_[axis * k_ + numbers_[row * m_ + axis / part_]];
  }

  std::size_t widest(const std::uint64_t* rows, std::size_t n) const {
    std::vector<std::size_t> counts(m_ * k_);
    for (std::size_t i = 0; i < n; ++i)
      for (std::size_t p = 0; p < m_; ++p) ++counts[p * k_ + numbers_[rows[i] * m_ + p]];
    std::size_t best = 0;
    double most = -1.0;
    for (std::size_t axis = 0; axis < m_ * part_; ++axis) {
      double sum = 0.0, squares = 0.0;
      for (std::size_t c = 0; c < k_; ++c) {
        const double v = static_cast<double>(book_[axis * k_ + c]);
        const double w = static_cast<double>(counts[axis / part_ * k_ + c]);
        sum += w * v;
        squares += w * v * v;
      }
      const double variance = squares - sum * sum / static_cast<double>(n);
      if (variance > most) {
        most = variance;
        best = axis;
      }
    }
    return best;
  }
};

}  // namespace

InvertedFileArrays fill_lists(const LopqView& quantizer, Span<const std::uint8_t> numbers,
                              Span<const std::uint32_t> lists, std::size_t leaf_blocks,
                              int n_threads) {
  quantizer.check();
  const ProductCode& code = quantizer.code;
  const std::size_t n = lists.size(), n_lists = quantizer.n_lists();
  if (numbers.size() != n * code.n_parts)
    throw std::invalid_argument("numbers must be (n, n_parts), lists (n)");
  for (const std::uint8_t number : numbers)
    if (number >= code.n_centroids()) throw std::invalid_argument("a number is out of range");
  InvertedFileArrays made;
  made.sizes.assign(n_lists, 0);
  for (const std::uint32_t list : lists) {
    if (list >= n_lists) throw std::invalid_argument("a list is out of range");
    ++made.sizes[list];
  }
  made.first_block.assign(n_lists + 1, 0);
  for (std::size_t list = 0; list < n_lists; ++list)
    made.first_block[list + 1] = made.first_block[list] + code.n_blocks(made.sizes[list]);
  const std::size_t words = (code.n_centroids() + 31) / 32;
  if (leaf_blocks > 0) {
    made.first_leaf.assign(n_lists + 1, 0);
    for (std::size_t list = 0; list < n_lists; ++list) {
      const std::size_t blocks = made.first_block[list + 1] - made.first_block[list];
      made.first_leaf[list + 1] = made.first_leaf[list] + (blocks + leaf_blocks - 1) / leaf_blocks;
    }
    made.present.assign(made.first_leaf[n_lists] * code.n_parts * words, 0);
  }
  constexpr std::uint64_t kNone = ~std::uint64_t{0};
  made.order.assign(made.first_block[n_lists] * kCodeBlock, kNone);
  made.blocks.assign(made.first_block[n_lists] * code.block_bytes(), 0);
  std::vector<std::size_t> at(n_lists);
  for (std::size_t list = 0; list < n_lists; ++list) at[list] = made.first_block[list] * kCodeBlock;
  for (std::size_t i = 0; i < n; ++i) made.order[at[lists[i]]++] = i;
  parallel_for(n_lists, n_threads, [&](std::size_t list, int) {
    const std::size_t first = made.first_block[list] * kCodeBlock, size = made.sizes[list];
    if (size == 0) return;
    if (leaf_blocks > 0)
      LeafCutter(quantizer, numbers.data(), list, leaf_blocks * kCodeBlock)
          .cut(made.order.data() + first, size);
    for (std::size_t i = 0; i < size; ++i) {
      const std::uint8_t* row = numbers.data() + made.order[first + i] * code.n_parts;
      put_code(code, made.blocks.data() + (first + i) / kCodeBlock * code.block_bytes(),
               i % kCodeBlock, row);
      if (leaf_blocks == 0) continue;
      const std::size_t leaf = made.first_leaf[list] + i / (leaf_blocks * kCodeBlock);
      for (std::size_t p = 0; p < code.n_parts; ++p)
        made.present[(leaf * code.n_parts + p) * words + row[p] / 32] |= 1u << row[p] % 32;
    }
  });
  return made;
}

}  // namespace delfsearch
