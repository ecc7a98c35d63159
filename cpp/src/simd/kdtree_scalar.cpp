// The portable kernels, and the definition that the others are tested against. The loops run over
// the 16 rows of a block innermost, which compilers turn into whatever vectors the target has.
#include <algorithm>
#include <cstring>
#include <limits>
#include <vector>

#include "kdtree_kernels.hpp"

namespace delfsearch::kdtree {
namespace {

constexpr std::size_t kRows = 16;

template <typename Word>
void dot(const std::uint8_t* codes, std::size_t d4, const Word* words, std::int32_t offset,
         std::int32_t (&sums)[kRows]) {
  // Unsigned: partial sums may wrap, the final one fits.
  std::uint32_t totals[kRows];
  std::fill(totals, totals + kRows, 0u - static_cast<std::uint32_t>(offset));
  for (std::size_t j = 0; j < d4; ++j) {
    const std::uint8_t* c = codes + j * 64;
    const std::int32_t w0 = words[4 * j], w1 = words[4 * j + 1], w2 = words[4 * j + 2],
                       w3 = words[4 * j + 3];
    for (std::size_t row = 0; row < kRows; ++row)
      totals[row] += static_cast<std::uint32_t>(w0 * c[4 * row] + w1 * c[4 * row + 1] +
                                                w2 * c[4 * row + 2] + w3 * c[4 * row + 3]);
  }
  for (std::size_t row = 0; row < kRows; ++row) sums[row] = static_cast<std::int32_t>(totals[row]);
}

void rank(const std::uint8_t* codes, const float* norms, std::size_t n_blocks, std::size_t d4,
          const Query* queries, std::size_t n_queries, float* scores, std::size_t stride) {
  std::int32_t sums[kRows];
  for (std::size_t b = 0; b < n_blocks; ++b)
    for (std::size_t q = 0; q < n_queries; ++q) {
      dot(codes + b * d4 * 64, d4, queries[q].high, queries[q].high_offset, sums);
      for (std::size_t row = 0; row < kRows; ++row)
        scores[q * stride + b * kRows + row] =
            norms[b * kRows + row] - queries[q].rank_scale * static_cast<float>(sums[row]);
    }
}

// A bound would cost as much as the distance: everything passes.
std::size_t filter(const Group& group, std::size_t, const std::uint8_t*, std::size_t,
                   const std::uint32_t* members, std::size_t n_members, Survivor* out) {
  for (std::size_t i = 0; i < n_members; ++i) out[i] = {group.valid, members[i]};
  return n_members;
}

void refine(const Group& group, std::size_t d4, std::uint64_t rows, Query& query) {
  std::int32_t sums[kRows];
  for (std::size_t b = 0; b < group.n_blocks; ++b) {
    const auto wanted = static_cast<std::uint32_t>(rows >> (kRows * b)) & 0xffffu;
    if (wanted == 0) continue;
    dot(group.codes + b * d4 * 64, d4, query.fine, query.fine_offset, sums);
    for (std::size_t row = 0; row < kRows; ++row) {
      const float p = group.norms[b * kRows + row] - query.scale * static_cast<float>(sums[row]);
      query.pending[query.count] = p;
      query.pending_row[query.count] =
          static_cast<std::uint32_t>(group.first_row + b * kRows + row);
      query.count +=
          static_cast<std::uint32_t>((wanted >> row & 1u) & (p <= query.limit ? 1u : 0u));
    }
  }
}

float kth_smallest(const float* values, std::size_t n, std::size_t k, std::size_t) {
  std::vector<float> copy(values, values + n);
  std::nth_element(copy.begin(), copy.begin() + static_cast<std::ptrdiff_t>(k - 1), copy.end());
  return copy[k - 1];
}

std::size_t keep(const float* values, const std::uint32_t* rows, std::size_t n, float limit,
                 float* out_values, std::uint32_t* out_rows) {
  std::size_t kept = 0;
  for (std::size_t i = 0; i < n; ++i) {
    const float value = values[i];
    out_values[kept] = value;
    out_rows[kept] = rows ? rows[i] : static_cast<std::uint32_t>(i);
    kept += value <= limit ? 1 : 0;
  }
  return kept;
}

void sort_keys(std::uint64_t* keys, std::size_t n) { std::sort(keys, keys + n); }

void nearest(const float* scores, std::size_t stride, const float* bases, std::size_t n,
             std::int32_t* keys) {
  for (std::size_t first = 0; first < stride; first += kRows) {
    std::int32_t held[kNearest][kRows];
    std::fill(&held[0][0], &held[0][0] + kNearest * kRows,
              std::numeric_limits<std::int32_t>::max());
    for (std::size_t i = 0; i < n; ++i) {
      std::int32_t key[kRows];
      float value[kRows];
      for (std::size_t row = 0; row < kRows; ++row)
        value[row] = scores[i * stride + first + row] + bases[i];
      std::memcpy(key, value, sizeof key);
      for (std::size_t row = 0; row < kRows; ++row)
        key[row] = (std::max(key[row], 0) & ~kNumberMask) | static_cast<std::int32_t>(i);
      for (std::size_t c = 0; c < kNearest; ++c)
        for (std::size_t row = 0; row < kRows; ++row) {
          const std::int32_t smaller = std::min(held[c][row], key[row]);
          key[row] = std::max(held[c][row], key[row]);
          held[c][row] = smaller;
        }
    }
    for (std::size_t c = 0; c < kNearest; ++c)
      std::copy(held[c], held[c] + kRows, keys + c * stride + first);
  }
}

}  // namespace

const Kernels& scalar_kernels() {
  static const Kernels kernels{256, rank, filter, refine, kth_smallest, keep, sort_keys, nearest};
  return kernels;
}

}  // namespace delfsearch::kdtree
