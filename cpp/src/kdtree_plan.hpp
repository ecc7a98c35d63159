// What one search is set up from, and the memory it works in. Internal to kdtree_search.cpp.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <vector>

#include "delfsearch/kdtree.hpp"
#include "simd/kdtree_kernels.hpp"

namespace delfsearch::kdtree {

constexpr std::size_t kGroupRows = 64;      // rows that a kernel call scans
constexpr std::size_t kPendingSlack = 256;  // least rows beyond k between two choices
constexpr std::size_t kSpare = 8;           // rows beyond k that a choice may leave
constexpr std::size_t kFirstLooks = 448;    // rows beyond k scanned for a first limit

// What a search needs of the tree beside its arrays, once per call.
struct Plan {
  const KdTreeView& tree;
  std::size_t d, d4, k, max_leaves, n_leaves, leaf_blocks;
  std::size_t first_leaves;   // scanned first, query by query, to have a limit for the others
  std::size_t leaves_ranked;  // best leaves that are asked for
  std::size_t capacity;       // of a query's pending list
  bool exhaustive;
  std::vector<double> middle, inverse_step;
  double largest_norm = 0;  // of any code at all
  double typical_norm = 0;

  Plan(const KdTreeView& view, std::size_t k_, std::size_t max_leaves_)
      : tree(view),
        d(view.dimension()),
        d4(padded_dimension(view.dimension()) / 4),
        k(std::min(k_, view.n)),
        max_leaves(0),
        n_leaves(view.n_leaves()),
        leaf_blocks(padded_rows(n_leaves) / kKdTreeBlock),
        capacity(k + std::max(k, kPendingSlack) + kGroupRows),
        exhaustive(false),
        middle(d),
        inverse_step(d) {
    // Leaves that hold nothing to be found are not visited, unless everything is.
    std::size_t open = 0;
    for (std::size_t leaf = 0; leaf < n_leaves; ++leaf) open += is_open(leaf) ? 1 : 0;
    max_leaves = std::min(max_leaves_, open);
    exhaustive = max_leaves == open && 2 * open >= n_leaves;
    first_leaves = std::min(max_leaves, (k + kFirstLooks + view.leaf_size - 1) / view.leaf_size);
    leaves_ranked = exhaustive ? first_leaves : max_leaves;
    for (std::size_t i = 0; i < d; ++i) {
      const double step = static_cast<double>(view.step[i]);
      middle[i] = static_cast<double>(view.lower[i]) + 128.0 * step;
      inverse_step[i] = step > 0 ? 1.0 / step : 0.0;
      largest_norm += 128.0 * step * 128.0 * step;
    }
    // Any positive value is right; one near the norms makes the filter sharp.
    std::size_t counted = 0;
    const std::size_t stride = std::max<std::size_t>(1, n_leaves / 64);
    for (std::size_t leaf = 0; leaf < n_leaves; leaf += stride) {
      if (!is_open(leaf)) continue;
      typical_norm += static_cast<double>(view.leaf_norms[leaf]);
      ++counted;
    }
    typical_norm = counted == 0 ? largest_norm : typical_norm / static_cast<double>(counted);
    typical_norm = std::max(typical_norm, largest_norm * 1e-6);
  }

  bool is_open(std::size_t leaf) const {
    return tree.leaf_norms[leaf] <= std::numeric_limits<float>::max();
  }
};

// Memory whose contents start undefined: most of it is never touched, and zeroing it would show.
template <typename T>
class Scratch {
 public:
  // Discards the contents.
  void resize(std::size_t n) {
    if (n > size_) data_.reset(new T[n]);
    size_ = std::max(size_, n);
  }
  std::size_t bytes() const { return size_ * sizeof(T); }
  T* data() { return data_.get(); }
  T& operator[](std::size_t i) { return data_[i]; }
  const T& operator[](std::size_t i) const { return data_[i]; }

 private:
  std::unique_ptr<T[]> data_;
  std::size_t size_ = 0;
};

struct Slack {
  double divisor, added, rounding;
};

// What a thread works in. The caller's own outlives the call: fresh pages for every photo would
// cost a tenth of its search.
struct Workspace {
  static constexpr std::size_t kKeptBytes = std::size_t{64} << 20;

  Scratch<Query> queries;
  Scratch<float> base;  // sum r^2, what P lacks to be the distance
  Scratch<Slack> slack;
  Scratch<std::int8_t> bytes;
  Scratch<std::int16_t> fine;
  Scratch<float> pending;
  Scratch<std::uint32_t> pending_row;
  Scratch<std::uint8_t> record_bytes;
  Scratch<Survivor> survivors;
  Scratch<double> v;
  Scratch<float> scores, values;
  Scratch<std::uint32_t> leaves, wanted, members, starts;

  void drop_if_large() {
    if (pending.bytes() + pending_row.bytes() + scores.bytes() + wanted.bytes() + members.bytes() >
        kKeptBytes)
      *this = Workspace();
  }
};

}  // namespace delfsearch::kdtree
