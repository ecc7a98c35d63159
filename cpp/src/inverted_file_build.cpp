// Sorting of coded rows into lists and leaves.
#include <algorithm>
#include <limits>
#include <numeric>
#include <stdexcept>

#include "delfsearch/inverted_file.hpp"
#include "delfsearch/parallel.hpp"

namespace delfsearch {
namespace {

// Cuts the codes of a list into leaves of leaf_size, as a KD-tree over what they stand for: along
// the dimension of the largest variance, at the multiple of leaf_size next to the middle.
class LeafCutter {
 public:
  // numbers (n_codes, n_parts) and rows (n_codes): of this list alone.
  LeafCutter(const LopqView& quantizer, const std::uint8_t* numbers, const std::uint32_t* rows,
             std::size_t list, std::size_t n_codes, std::size_t leaf_size)
      : numbers_(numbers),
        rows_(rows),
        m_(quantizer.code.n_parts),
        k_(quantizer.code.n_centroids()),
        part_(quantizer.part_dimension()),
        leaf_size_(leaf_size),
        axes_(quantizer) {
    if (n_codes > leaf_size) axes_.open(list);
  }

  void cut(std::uint32_t* codes, std::size_t n) const {
    if (n <= leaf_size_) {
      sort_by_row(codes, n);
      return;
    }
    const std::size_t axis = widest(codes, n);
    const std::size_t leaves = (n + leaf_size_ - 1) / leaf_size_;
    const std::size_t half = leaves / 2 * leaf_size_;
    std::nth_element(codes, codes + half, codes + n, [&](std::uint32_t a, std::uint32_t b) {
      const float va = value(a, axis), vb = value(b, axis);
      return va != vb ? va < vb : before(a, b);
    });
    cut(codes, half);
    cut(codes + half, n - half);
  }

  void sort_by_row(std::uint32_t* codes, std::size_t n) const {
    const auto less = [&](std::uint32_t a, std::uint32_t b) { return before(a, b); };
    if (!std::is_sorted(codes, codes + n, less)) std::sort(codes, codes + n, less);
  }

 private:
  const std::uint8_t* numbers_;
  const std::uint32_t* rows_;
  std::size_t m_, k_, part_, leaf_size_;
  ListAxes axes_;

  bool before(std::uint32_t a, std::uint32_t b) const {
    return rows_[a] != rows_[b] ? rows_[a] < rows_[b] : a < b;
  }

  float value(std::uint32_t code, std::size_t axis) const {
    return axes_.codebook()[axis * k_ + numbers_[code * m_ + axis / part_]];
  }

  std::size_t widest(const std::uint32_t* codes, std::size_t n) const {
    std::vector<std::uint32_t> counts(m_ * k_);
    for (std::size_t i = 0; i < n; ++i)
      for (std::size_t p = 0; p < m_; ++p) ++counts[p * k_ + numbers_[codes[i] * m_ + p]];
    std::size_t best = 0;
    double most = -1.0;
    for (std::size_t axis = 0; axis < m_ * part_; ++axis) {
      double sum = 0.0, squares = 0.0;
      for (std::size_t c = 0; c < k_; ++c) {
        const double v = static_cast<double>(axes_.codebook()[axis * k_ + c]);
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
                              Span<const std::uint32_t> lists, Span<const std::uint32_t> rows,
                              std::size_t leaf_blocks, int n_threads) {
  quantizer.check();
  const ProductCode& code = quantizer.code;
  const std::size_t n = lists.size(), n_lists = quantizer.n_lists(), m = code.n_parts;
  if (numbers.size() != n * m || rows.size() != n)
    throw std::invalid_argument("numbers must be (n, n_parts), lists and rows (n)");
  if (n > std::numeric_limits<std::uint32_t>::max())
    throw std::invalid_argument("codes must be fewer than 2^32");
  for (const std::uint8_t number : numbers)
    if (number >= code.n_centroids()) throw std::invalid_argument("a number is out of range");
  InvertedFileArrays made;
  made.sizes.assign(n_lists, 0);
  for (const std::uint32_t list : lists) {
    if (list >= n_lists) throw std::invalid_argument("a list is out of range");
    ++made.sizes[list];
  }
  made.first_block.assign(n_lists + 1, 0);
  std::vector<std::size_t> first(n_lists + 1, 0);  // code of each list
  for (std::size_t list = 0; list < n_lists; ++list) {
    made.first_block[list + 1] = made.first_block[list] + code.n_blocks(made.sizes[list]);
    first[list + 1] = first[list] + made.sizes[list];
  }
  const std::size_t words = (code.n_centroids() + 31) / 32;
  if (leaf_blocks > 0) {
    made.first_leaf.assign(n_lists + 1, 0);
    for (std::size_t list = 0; list < n_lists; ++list) {
      const std::size_t blocks = made.first_block[list + 1] - made.first_block[list];
      made.first_leaf[list + 1] = made.first_leaf[list] + (blocks + leaf_blocks - 1) / leaf_blocks;
    }
    made.present.assign(made.first_leaf[n_lists] * m * words, 0);
  }
  std::vector<std::uint32_t> order(n);
  {
    std::vector<std::size_t> at(first.begin(), first.end() - 1);
    for (std::size_t i = 0; i < n; ++i) order[at[lists[i]]++] = static_cast<std::uint32_t>(i);
  }
  made.rows.resize(n);
  made.blocks.assign(made.first_block[n_lists] * code.block_bytes(), 0);
  parallel_for(n_lists, n_threads, [&](std::size_t list, int) {
    const std::size_t size = made.sizes[list];
    if (size == 0) return;
    // The list's codes beside each other: sorting them stays in the cache.
    std::vector<std::uint8_t> own_numbers(size * m);
    std::vector<std::uint32_t> own_rows(size), codes(size);
    for (std::size_t i = 0; i < size; ++i) {
      const std::size_t from = order[first[list] + i];
      std::copy_n(numbers.data() + from * m, m, own_numbers.data() + i * m);
      own_rows[i] = rows[from];
      codes[i] = static_cast<std::uint32_t>(i);
    }
    const LeafCutter cutter(quantizer, own_numbers.data(), own_rows.data(), list,
                            leaf_blocks > 0 ? size : 0, leaf_blocks * kCodeBlock);
    if (leaf_blocks > 0)
      cutter.cut(codes.data(), size);
    else
      cutter.sort_by_row(codes.data(), size);
    std::uint8_t* blocks = made.blocks.data() + made.first_block[list] * code.block_bytes();
    for (std::size_t i = 0; i < size; ++i) {
      const std::uint8_t* row = own_numbers.data() + codes[i] * m;
      put_code(code, blocks + i / kCodeBlock * code.block_bytes(), i % kCodeBlock, row);
      made.rows[first[list] + i] = own_rows[codes[i]];
      if (leaf_blocks == 0) continue;
      const std::size_t leaf = made.first_leaf[list] + i / (leaf_blocks * kCodeBlock);
      for (std::size_t p = 0; p < m; ++p)
        made.present[(leaf * m + p) * words + row[p] / 32] |= 1u << row[p] % 32;
    }
  });
  return made;
}

TakenCodes take_lists(const InvertedFileView& file, std::size_t begin, std::size_t end,
                      int n_threads) {
  if (begin > end || end > file.n_lists())
    throw std::invalid_argument("lists must be a range of those that there are");
  const ProductCode& code = file.quantizer.code;
  std::vector<std::size_t> first(end - begin + 1, 0);
  for (std::size_t list = begin; list < end; ++list)
    first[list - begin + 1] = first[list - begin] + file.sizes[list];
  TakenCodes taken;
  taken.numbers.resize(first.back() * code.n_parts);
  taken.lists.resize(first.back());
  parallel_for(end - begin, n_threads, [&](std::size_t i, int) {
    const std::size_t list = begin + i;
    const std::uint8_t* blocks = file.blocks.data() + file.first_block[list] * code.block_bytes();
    for (std::size_t c = 0; c < file.sizes[list]; ++c) {
      get_code(code, blocks + c / kCodeBlock * code.block_bytes(), c % kCodeBlock,
               taken.numbers.data() + (first[i] + c) * code.n_parts);
      taken.lists[first[i] + c] = static_cast<std::uint32_t>(list);
    }
  });
  return taken;
}

}  // namespace delfsearch
