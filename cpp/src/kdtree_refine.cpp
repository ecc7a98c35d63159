#include "kdtree_refine.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "delfsearch/kdtree.hpp"
#include "delfsearch/parallel.hpp"
#include "kdtree_encode.hpp"
#include "kdtree_layout.hpp"
#include "simd/kdtree_kernels.hpp"

namespace delfsearch::kdtree {
namespace {

constexpr std::size_t kNearLeaves = 128;
static_assert(kNearLeaves <= kNumberMask + 1);
constexpr std::size_t kMostLeaves = 16384;  // of a run: their distances are computed all to all
constexpr std::size_t kMostRows = std::size_t{1} << 20;
constexpr std::size_t kFewUnplaced = 16;  // at most this fraction of the rows
constexpr std::size_t kRowsAhead = 12;    // fetched early
constexpr std::size_t kTogether = 16;     // leaves whose neighbours are looked for at a time

// What a leaf orders its applicants by: nearer rows first (by the distance less its last bits,
// where a number stands), ties by row.
std::uint64_t wish(float squared_distance, std::uint32_t row) {
  std::uint32_t bits;
  std::memcpy(&bits, &squared_distance, 4);
  return static_cast<std::uint64_t>(bits) << 32 | row;
}

float value_of(std::int32_t key) {
  float value;
  std::memcpy(&value, &key, 4);
  return value;
}

// Vectors as the kernels multiply them with codes: V = 256 * high + low.
struct Words {
  std::vector<Query> high, low;  // low is a query of its own
  std::vector<std::int8_t> bytes;
  std::size_t padded = 0;

  void resize(std::size_t n, std::size_t padded_dimensions) {
    padded = padded_dimensions;
    high.assign(n, Query());
    low.assign(n, Query());
    bytes.assign(n * padded * 2, 0);
  }
  void set(std::size_t i, const std::vector<double>& v, double unit) {
    std::int8_t* h = bytes.data() + i * padded * 2;
    std::int8_t* l = h + padded;
    std::int32_t high_sum = 0, low_sum = 0;
    for (std::size_t j = 0; j < v.size(); ++j) {
      const int fine = fine_part(v[j], unit);
      h[j] = static_cast<std::int8_t>(high_part(fine));
      l[j] = static_cast<std::int8_t>(fine - 256 * h[j]);
      high_sum += h[j];
      low_sum += l[j];
    }
    high[i].high = h;
    high[i].high_offset = 128 * high_sum;
    high[i].rank_scale = 256 * static_cast<float>(2 * unit);
    low[i].high = l;
    low[i].high_offset = 128 * low_sum;
    low[i].rank_scale = static_cast<float>(2 * unit);
  }
};

struct Choice {
  float squared_distance;
  std::uint32_t leaf;
};

// One round over the leaves of one run, whose rows and leaves are numbered within it. Memory is
// kept from round to round.
class Refiner {
 public:
  Refiner(Span<const std::uint8_t> codes, const Quantizer& quantizer,
          const std::vector<float>& norms, std::size_t leaf_size, int n_threads)
      : codes_(codes.data()),
        row_norms_(norms),
        quantizer_(quantizer),
        norm_(quantizer),
        d_(quantizer.dimension()),
        padded_(padded_dimension(d_)),
        leaf_size_(leaf_size),
        n_threads_(n_threads) {}

  void refine(std::uint32_t* order, std::size_t n_rows) {
    order_ = order;
    n_rows_ = n_rows;
    n_leaves_ = (n_rows + leaf_size_ - 1) / leaf_size_;
    n_near_ = std::min(kNearLeaves, n_leaves_);
    n_choices_ = std::min(kNearest, n_near_);
    leaf_blocks_ = padded_rows(n_leaves_) / kKdTreeBlock;
    describe();
    choose();
    settle();
    rows_.assign(order_, order_ + n_rows_);
    for (std::size_t place = 0; place < n_rows_; ++place) order_[place] = rows_[held_[place]];
    for (std::size_t leaf = 0; leaf < n_leaves_; ++leaf)
      std::sort(order_ + first(leaf), order_ + first(leaf + 1));
  }

 private:
  // Of the leaf's rows; also of their places in held_.
  std::size_t first(std::size_t leaf) const { return std::min(leaf * leaf_size_, n_rows_); }

  // Rows in blocks, and each leaf's mean both as a row and as a query.
  void describe() {
    // Bytes of padding may hold anything: their words are 0, and rows past the end are not read.
    blocks_.resize(padded_rows(n_rows_) * padded_);
    norms_.resize(padded_rows(n_rows_));
    leaf_blocks_codes_.assign(leaf_blocks_ * kKdTreeBlock * padded_, 0);
    leaf_norms_.assign(leaf_blocks_ * kKdTreeBlock, std::numeric_limits<float>::infinity());
    means_.resize(n_leaves_, padded_);
    bases_.resize(n_leaves_);
    // In runs of 16 leaves: no two threads write to one block of leaf codes.
    parallel_for(leaf_blocks_, n_threads_, [&](std::size_t block, int) {
      std::vector<std::uint32_t> totals(d_);
      std::vector<std::uint8_t> mean(d_);
      std::vector<double> v(d_);
      for (std::size_t leaf = block * kKdTreeBlock;
           leaf < std::min((block + 1) * kKdTreeBlock, n_leaves_); ++leaf) {
        std::fill(totals.begin(), totals.end(), 0);
        for (std::size_t row = first(leaf); row < first(leaf + 1); ++row) {
          // Rows are scattered over the input.
          const std::size_t ahead = std::min(row + kRowsAhead, n_rows_ - 1);
          prefetch(codes_ + order_[ahead] * d_);
          prefetch(row_norms_.data() + order_[ahead]);
          const std::uint8_t* code = codes_ + order_[row] * d_;
          put_row(blocks_.data(), d_, row, code);
          norms_[row] = row_norms_[order_[row]];
          for (std::size_t j = 0; j < d_; ++j) totals[j] += code[j];
        }
        const auto count = static_cast<std::uint32_t>(first(leaf + 1) - first(leaf));
        double base = 0, largest = 0, total = 0;
        for (std::size_t j = 0; j < d_; ++j) {
          mean[j] = static_cast<std::uint8_t>((2 * totals[j] + count) / (2 * count));
          const double step = static_cast<double>(quantizer_.step[j]);
          const double r =
              step * (static_cast<double>(totals[j]) / static_cast<double>(count) - 128.0);
          v[j] = r * step;
          base += r * r;
          largest = std::max(largest, std::fabs(v[j]));
          total += std::fabs(v[j]);
        }
        put_row(leaf_blocks_codes_.data(), d_, leaf, mean.data());
        leaf_norms_[leaf] = norm_(mean.data());
        means_.set(leaf, v, unit_of(largest, total));
        bases_[leaf] = static_cast<float>(base);
      }
    });
  }

  // Fills choices_: for each row the nearest leaves around its own, nearest first.
  void choose() {
    choices_.resize(n_rows_ * n_choices_);
    const std::size_t n_tasks = (n_leaves_ + kTogether - 1) / kTogether;
    parallel_for(n_tasks, n_threads_, [&](std::size_t task, int) {
      const std::size_t begin = task * kTogether;
      const std::size_t end = std::min(begin + kTogether, n_leaves_);
      const std::size_t stride = leaf_blocks_ * kKdTreeBlock;
      std::vector<float> scores((end - begin) * stride), values(stride + kKdTreeBlock);
      std::vector<std::uint32_t> near(stride + kKdTreeBlock);
      kernels().rank(leaf_blocks_codes_.data(), leaf_norms_.data(), leaf_blocks_, padded_ / 4,
                     means_.high.data() + begin, end - begin, scores.data(), stride);
      for (std::size_t leaf = begin; leaf < end; ++leaf) {
        const float* mine = scores.data() + (leaf - begin) * stride;
        const float last = kernels().kth_smallest(mine, n_leaves_, n_near_, 0);
        std::size_t n_near =
            kernels().keep(mine, nullptr, n_leaves_, last, values.data(), near.data());
        // More where many tie for the last place; the leaf itself must be among them.
        n_near = std::min(n_near, n_near_);
        if (std::find(near.begin(), near.begin() + static_cast<std::ptrdiff_t>(n_near), leaf) ==
            near.begin() + static_cast<std::ptrdiff_t>(n_near))
          near[n_near - 1] = static_cast<std::uint32_t>(leaf);
        choose_for(leaf, near.data(), n_near);
      }
    });
  }

  void choose_for(std::size_t leaf, const std::uint32_t* near, std::size_t n_near) {
    const std::size_t begin = first(leaf), end = first(leaf + 1);
    const std::size_t first_block = begin / kKdTreeBlock;
    const std::size_t n_blocks = (end + kKdTreeBlock - 1) / kKdTreeBlock - first_block;
    const std::size_t stride = n_blocks * kKdTreeBlock;
    std::vector<Query> high(n_near), low(n_near);
    std::vector<float> bases(n_near);
    for (std::size_t i = 0; i < n_near; ++i) {
      high[i] = means_.high[near[i]];
      low[i] = means_.low[near[i]];
      bases[i] = bases_[near[i]];
    }
    // All 16 bits: leaves of a million rows of few dimensions lie closer than 8 can tell.
    std::vector<float> scores(n_near * stride), rests(n_near * stride), zeros(stride, 0.0f);
    const std::uint8_t* blocks = blocks_.data() + first_block * kKdTreeBlock * padded_;
    kernels().rank(blocks, norms_.data() + first_block * kKdTreeBlock, n_blocks, padded_ / 4,
                   high.data(), n_near, scores.data(), stride);
    kernels().rank(blocks, zeros.data(), n_blocks, padded_ / 4, low.data(), n_near, rests.data(),
                   stride);
    for (std::size_t i = 0; i < scores.size(); ++i) scores[i] += rests[i];
    std::vector<std::int32_t> best(kNearest * stride);
    kernels().nearest(scores.data(), stride, bases.data(), n_near, best.data());
    for (std::size_t row = begin; row < end; ++row)
      for (std::size_t c = 0; c < n_choices_; ++c) {
        const std::int32_t key = best[c * stride + row - first_block * kKdTreeBlock];
        choices_[c * n_rows_ + row] = {value_of(key), near[key & kNumberMask]};
      }
  }

  // Deferred acceptance; then held_[place] is the row at each place of each leaf.
  void settle() {
    held_.resize(n_rows_);
    std::vector<std::uint32_t> n_held(n_leaves_, 0), next(n_rows_, 0), starts(n_leaves_ + 1);
    std::vector<std::uint32_t> applying(n_rows_), by_leaf, refused, unplaced;
    std::vector<std::uint64_t> wishes;
    for (std::size_t row = 0; row < n_rows_; ++row) applying[row] = static_cast<std::uint32_t>(row);
    const auto choice = [&](std::uint32_t row) -> const Choice& {
      return choices_[next[row] * n_rows_ + row];
    };
    while (!applying.empty()) {
      std::fill(starts.begin(), starts.end(), 0);
      for (const std::uint32_t row : applying) ++starts[choice(row).leaf + 1];
      for (std::size_t leaf = 0; leaf < n_leaves_; ++leaf) starts[leaf + 1] += starts[leaf];
      by_leaf.resize(applying.size());
      for (const std::uint32_t row : applying) by_leaf[starts[choice(row).leaf]++] = row;
      refused.clear();
      std::size_t begin = 0;
      for (std::size_t leaf = 0; leaf < n_leaves_; ++leaf) {
        const std::size_t end = starts[leaf];
        if (end == begin) continue;
        wishes.clear();
        std::uint32_t* held = held_.data() + first(leaf);
        for (std::uint32_t i = 0; i < n_held[leaf]; ++i)
          wishes.push_back(wish(choice(held[i]).squared_distance, held[i]));
        for (; begin < end; ++begin)
          wishes.push_back(wish(choice(by_leaf[begin]).squared_distance, by_leaf[begin]));
        const std::size_t room = first(leaf + 1) - first(leaf);
        const std::size_t taken = std::min(room, wishes.size());
        if (taken < wishes.size())
          std::nth_element(wishes.begin(), wishes.begin() + static_cast<std::ptrdiff_t>(taken),
                           wishes.end());
        for (std::size_t i = 0; i < taken; ++i) held[i] = static_cast<std::uint32_t>(wishes[i]);
        n_held[leaf] = static_cast<std::uint32_t>(taken);
        for (std::size_t i = taken; i < wishes.size(); ++i) {
          const auto row = static_cast<std::uint32_t>(wishes[i]);
          (++next[row] < n_choices_ ? refused : unplaced).push_back(row);
        }
      }
      applying.swap(refused);
    }
    place_the_rest(unplaced, n_held);
  }

  // Rows that all their leaves refused: to the nearest leaf with room, one after the other. Where
  // there are many (copies of one row, say) in the order of the tree, in which neighbours are near.
  void place_the_rest(std::vector<std::uint32_t>& unplaced, std::vector<std::uint32_t>& n_held) {
    std::sort(unplaced.begin(), unplaced.end());
    std::vector<std::uint32_t> open;
    for (std::size_t leaf = 0; leaf < n_leaves_; ++leaf)
      if (n_held[leaf] < first(leaf + 1) - first(leaf))
        open.push_back(static_cast<std::uint32_t>(leaf));
    if (unplaced.size() > n_rows_ / kFewUnplaced) {
      auto row = unplaced.begin();
      for (const std::uint32_t leaf : open)
        while (n_held[leaf] < first(leaf + 1) - first(leaf))
          held_[first(leaf) + n_held[leaf]++] = *row++;
      return;
    }
    Words words;
    words.resize(1, padded_);
    std::vector<double> v(d_);
    std::vector<float> scores(leaf_blocks_ * kKdTreeBlock);
    for (const std::uint32_t row : unplaced) {
      const std::uint8_t* code = codes_ + order_[row] * d_;
      double largest = 0, total = 0;
      for (std::size_t j = 0; j < d_; ++j) {
        const double step = static_cast<double>(quantizer_.step[j]);
        v[j] = step * step * (static_cast<double>(code[j]) - 128.0);
        largest = std::max(largest, std::fabs(v[j]));
        total += std::fabs(v[j]);
      }
      words.set(0, v, unit_of(largest, total));
      kernels().rank(leaf_blocks_codes_.data(), leaf_norms_.data(), leaf_blocks_, padded_ / 4,
                     words.high.data(), 1, scores.data(), scores.size());
      std::size_t best = 0;
      for (std::size_t i = 1; i < open.size(); ++i)
        if (scores[open[i]] < scores[open[best]]) best = i;
      const std::uint32_t leaf = open[best];
      held_[first(leaf) + n_held[leaf]++] = row;
      if (n_held[leaf] == first(leaf + 1) - first(leaf))
        open.erase(open.begin() + static_cast<std::ptrdiff_t>(best));
    }
  }

  const std::uint8_t* codes_;
  const std::vector<float>& row_norms_;
  const Quantizer& quantizer_;
  NormTable norm_;
  std::size_t d_, padded_, leaf_size_;
  int n_threads_;
  std::uint32_t* order_ = nullptr;
  std::size_t n_rows_ = 0, n_leaves_ = 0, n_near_ = 0, n_choices_ = 0, leaf_blocks_ = 0;
  std::vector<std::uint8_t> blocks_, leaf_blocks_codes_;
  std::vector<float> norms_, leaf_norms_, bases_;
  Words means_;
  std::vector<Choice> choices_;  // (n_choices_, n_rows_): most rows get their first
  std::vector<std::uint32_t> held_, rows_;
};

}  // namespace

void refine_leaves(Span<const std::uint8_t> codes, const Quantizer& quantizer,
                   const std::vector<float>& norms, std::size_t leaf_size, int rounds,
                   int n_threads, std::vector<std::uint32_t>& order) {
  const std::size_t n = order.size();
  const std::size_t n_leaves = (n + leaf_size - 1) / leaf_size;
  // In two or three dimensions the cells of the tree serve as well.
  if (rounds == 0 || quantizer.dimension() < 4 || leaf_size < kKdTreeBlock ||
      leaf_size > kMostRows || n_leaves < 2)
    return;
  const std::size_t most = std::max<std::size_t>(2, std::min(kMostLeaves, kMostRows / leaf_size));
  const std::size_t n_runs = (n_leaves + most - 1) / most;
  const std::size_t leaves_each = (n_leaves + n_runs - 1) / n_runs;
  Refiner refiner(codes, quantizer, norms, leaf_size, n_threads);
  for (int round = 0; round < rounds; ++round) {
    // Every other round the runs begin in the middle, so that their borders are refined too.
    const std::size_t shift = n_runs > 1 && round % 2 == 1 ? leaves_each / 2 : 0;
    for (std::size_t begin = 0; begin < n_leaves;) {
      const std::size_t end =
          std::min(n_leaves, begin == 0 && shift > 0 ? shift : begin + leaves_each);
      const std::size_t first_row = begin * leaf_size;
      refiner.refine(order.data() + first_row, std::min(end * leaf_size, n) - first_row);
      begin = end;
    }
  }
}

}  // namespace delfsearch::kdtree
