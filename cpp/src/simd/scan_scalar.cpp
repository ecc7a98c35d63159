#include <algorithm>
#include <limits>
#include <vector>

#include "bits.hpp"
#include "scan_kernels.hpp"

#define DELFSEARCH_INLINE inline

namespace delfsearch::scan {
namespace {

void may_pass(const ProductCode& code, const std::uint8_t* blocks, std::size_t n_blocks,
              const std::uint8_t*, const ByteTable* tables, std::size_t n_tables,
              Passed* const* out, std::size_t* counts) {
  std::vector<std::uint8_t> numbers(code.n_parts);
  std::fill(counts, counts + n_tables, std::size_t{0});
  for (std::size_t b = 0; b < n_blocks; ++b) {
    std::uint64_t passes[kTogether] = {};
    for (std::size_t place = 0; place < kCodeBlock; ++place) {
      get_code(code, blocks + b * code.block_bytes(), place, numbers.data());
      for (std::size_t q = 0; q < n_tables; ++q) {
        unsigned sum = 0;
        for (std::size_t part = 0; part < code.n_parts; ++part)
          sum += tables[q].entries[part * code.n_centroids() + numbers[part]];
        passes[q] |= static_cast<std::uint64_t>(std::min(sum, 255u) <= tables[q].limit) << place;
      }
    }
    for (std::size_t q = 0; q < n_tables; ++q)
      if (passes[q] != 0) out[q][counts[q]++] = {passes[q], static_cast<std::uint32_t>(b)};
  }
}

#include "scan_single.inl"

template <int kBits>
std::size_t distances_of(std::size_t n_parts, const std::uint8_t* blocks, const Passed* which,
                         std::size_t n, const float* entries, float limit,
                         std::uint32_t first_place, float* values, std::uint32_t* places) {
  constexpr std::size_t kPartBytes = 32 + 8 * (kBits - 4);
  std::size_t found = 0;
  for (std::size_t i = 0; i < n; ++i) {
    const std::uint8_t* block = blocks + which[i].block * n_parts * kPartBytes;
    const auto first = first_place + which[i].block * static_cast<std::uint32_t>(kCodeBlock);
    for (std::uint64_t codes = which[i].codes; codes != 0; codes &= codes - 1) {
      const auto place = static_cast<std::uint32_t>(lowest_bit(codes));
      values[found] = distance_of<kBits>(n_parts, block, entries, place);
      places[found] = first + place;
      found += values[found] <= limit;
    }
  }
  return found;
}

#include "scan_choose.inl"

void round_down(const ProductCode& code, const float* entries, const float* least, float scale,
                std::uint8_t* bytes) {
  for (std::size_t part = 0; part < code.n_parts; ++part)
    for (std::size_t c = 0; c < code.n_centroids(); ++c, ++entries, ++bytes) {
      const float value = (*entries - least[part]) * scale;
      *bytes = static_cast<std::uint8_t>(value < 255.0f ? value : 255.0f);
    }
}

void leaf_bounds(const ProductCode& code, const std::uint32_t* present, std::size_t n_leaves,
                 const float* entries, float* bounds) {
  const std::size_t words = (code.n_centroids() + 31) / 32;
  // In a damaged file bits may be set behind the last centroid.
  const std::uint64_t there =
      code.n_centroids() < 32 ? (1u << code.n_centroids()) - 1 : 0xffffffffu;
  for (std::size_t leaf = 0; leaf < n_leaves; ++leaf, present += code.n_parts * words) {
    float sum = 0.0f;
    for (std::size_t part = 0; part < code.n_parts; ++part) {
      float least = std::numeric_limits<float>::infinity();
      for (std::size_t word = 0; word < words; ++word)
        for (std::uint64_t bits = present[part * words + word] & there; bits != 0; bits &= bits - 1)
          least = std::min(least, entries[part * code.n_centroids() + 32 * word +
                                          static_cast<std::size_t>(lowest_bit(bits))]);
      sum = sum + least;
    }
    bounds[leaf] = sum;
  }
}

void ranks(std::uint32_t* keys, std::size_t n, std::uint32_t* ranks) {
  std::vector<std::uint64_t> order(n);
  for (std::size_t i = 0; i < n; ++i) order[i] = static_cast<std::uint64_t>(keys[i]) << 32 | i;
  std::sort(order.begin(), order.end());
  for (std::size_t i = 0; i < n; ++i) ranks[order[i] & 0xffffffffu] = static_cast<std::uint32_t>(i);
}

void range(const float* values, std::size_t n, float* least, float* greatest) {
  const auto found = std::minmax_element(values, values + n);
  *least = *found.first;
  *greatest = *found.second;
}

std::size_t count_within(const float* values, std::size_t n, float limit) {
  std::size_t count = 0;
  for (std::size_t i = 0; i < n; ++i) count += values[i] <= limit;
  return count;
}

std::size_t keep_within(float* values, std::uint32_t* places, std::size_t n, float limit) {
  std::size_t kept = 0;
  for (std::size_t i = 0; i < n; ++i) {
    const float value = values[i];
    const std::uint32_t place = places[i];
    values[kept] = value;
    places[kept] = place;
    kept += value <= limit;
  }
  return kept;
}

}  // namespace

const Kernels& kernels_scalar() {
  static const Kernels table{16,    may_pass, distances,    round_down, leaf_bounds,
                             ranks, range,    count_within, keep_within};
  return table;
}

}  // namespace delfsearch::scan
