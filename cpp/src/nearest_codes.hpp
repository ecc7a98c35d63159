// The k nearest codes of a query among those given to it, by (distance, place).
//
// Some more than k are kept: a cut finds a distance that at least k, and not many more, are within,
// by counting, and drops the rest. What it drops is farther than k others, so the k that are left
// in the end are the same however often, and where, cuts were made. Distances are not negative:
// their bits rise with them.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include "simd/scan_kernels.hpp"

namespace delfsearch {

inline std::uint32_t bits_of(float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}
inline float float_of(std::uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

inline std::uint64_t nearness(float distance, std::uint32_t place) {
  return static_cast<std::uint64_t>(bits_of(distance)) << 32 | place;
}

class NearestCodes {
 public:
  // Entries that the arrays of reset have room for.
  static std::size_t room(std::size_t k) { return 3 * most(k) + scan::kRoom; }

  void reset(std::size_t k, float* values, std::uint32_t* places) {
    k_ = k;
    values_ = values;
    places_ = places;
    size_ = scanned = 0;
    limit_ = std::numeric_limits<float>::infinity();
  }

  // What is farther need not be given.
  float limit() const { return limit_; }

  // The k-th smallest distance of all that was given: infinite where there are fewer.
  float kth(std::vector<float>& scratch) const {
    if (size_ < k_) return std::numeric_limits<float>::infinity();
    scratch.assign(values_, values_ + size_);
    const auto last = scratch.begin() + static_cast<std::ptrdiff_t>(k_ - 1);
    std::nth_element(scratch.begin(), last, scratch.end());
    return *last;
  }

  // n distances within the limit, and their places; the arrays are overwritten, and have room for
  // scan::kRoom more.
  void take(const scan::Kernels& kernels, float* values, std::uint32_t* places, std::size_t n) {
    if (n == 0) return;
    if (n > most(k_)) n = cut(kernels, values, places, n);
    std::copy_n(values, n, values_ + size_);
    std::copy_n(places, n, places_ + size_);
    size_ += n;
    if (size_ > 2 * most(k_) || (size_ >= k_ && limit_ == std::numeric_limits<float>::infinity()))
      size_ = cut(kernels, values_, places_, size_);
  }

  // The k first by (distance, place), in that order, -1 behind the last.
  void write(const scan::Kernels& kernels, float* distances, std::int64_t* places) {
    if (size_ > most(k_)) size_ = cut(kernels, values_, places_, size_);
    const std::size_t n = size_;
    const std::size_t n_written = std::min(n, k_);
    std::fill(distances + n_written, distances + k_, std::numeric_limits<float>::infinity());
    std::fill(places + n_written, places + k_, -1);
    if (n <= scan::kMostRanked) {
      std::uint32_t keys[scan::kMostRanked + scan::kRoom], ranks[scan::kMostRanked + scan::kRoom];
      std::memcpy(keys, values_, n * sizeof(float));
      std::fill(keys + n, keys + n + scan::kRoom, 0u);
      kernels.ranks(keys, n, ranks);
      float sorted[scan::kMostRanked];
      std::uint32_t sorted_places[scan::kMostRanked];
      for (std::size_t i = 0; i < n; ++i) {
        sorted[ranks[i]] = values_[i];
        sorted_places[ranks[i]] = places_[i];
      }
      bool tie = false;
      for (std::size_t i = 1; i < n; ++i) tie |= sorted[i - 1] == sorted[i];
      if (!tie) {
        std::copy_n(sorted, n_written, distances);
        for (std::size_t i = 0; i < n_written; ++i)
          places[i] = static_cast<std::int64_t>(sorted_places[i]);
        return;
      }
    }
    // For many, or where distances tie.
    std::vector<std::uint64_t> keys(n);
    for (std::size_t i = 0; i < n; ++i) keys[i] = nearness(values_[i], places_[i]);
    std::sort(keys.begin(), keys.end());
    for (std::size_t i = 0; i < n_written; ++i) {
      distances[i] = float_of(static_cast<std::uint32_t>(keys[i] >> 32));
      places[i] = static_cast<std::int64_t>(keys[i] & 0xffffffffu);
    }
  }

  std::size_t scanned = 0;  // codes

 private:
  std::size_t k_ = 0, size_ = 0;
  float limit_ = std::numeric_limits<float>::infinity();
  float* values_ = nullptr;
  std::uint32_t* places_ = nullptr;

  static std::size_t most(std::size_t k) { return k + k / 4 + 4; }
  // n >= k_; between k_ and most(k_) are left.
  std::size_t cut(const scan::Kernels& kernels, float* values, std::uint32_t* places,
                  std::size_t n) {
    float least, greatest;
    kernels.range(values, n, &least, &greatest);
    if (n <= most(k_)) {
      limit_ = std::min(limit_, greatest);
      return n;
    }
    // Fewer than k_ are within `low`, too many within `high`.
    std::uint32_t low = bits_of(least) == 0 ? 0 : bits_of(least) - 1, high = bits_of(greatest);
    std::size_t n_low = bits_of(least) == 0 ? kernels.count_within(values, n, 0.0f) : 0, n_high = n;
    if (n_low >= k_) high = 0;
    for (bool halve = false; high - low > 1; halve = !halve) {
      // Where the count would be right if it rose evenly; every other time the middle.
      const double share = (static_cast<double>(k_ + most(k_)) / 2 - static_cast<double>(n_low)) /
                           static_cast<double>(n_high - n_low);
      const double step = halve ? 0.5 : std::min(std::max(share, 0.02), 0.98);
      const auto middle =
          low + std::max<std::uint32_t>(
                    1, static_cast<std::uint32_t>(step * static_cast<double>(high - low)));
      const std::size_t count = kernels.count_within(values, n, float_of(middle));
      if (count >= k_ && count <= most(k_)) {
        limit_ = std::min(limit_, float_of(middle));
        return kernels.keep_within(values, places, n, float_of(middle));
      }
      (count < k_ ? low : high) = middle;
      (count < k_ ? n_low : n_high) = count;
    }
    // Too many tie: of these the lower places.
    std::vector<std::uint64_t> keys(n);
    for (std::size_t i = 0; i < n; ++i) keys[i] = nearness(values[i], places[i]);
    std::nth_element(keys.begin(), keys.begin() + static_cast<std::ptrdiff_t>(k_ - 1), keys.end());
    for (std::size_t i = 0; i < k_; ++i) {
      values[i] = float_of(static_cast<std::uint32_t>(keys[i] >> 32));
      places[i] = static_cast<std::uint32_t>(keys[i] & 0xffffffffu);
    }
    limit_ = std::min(limit_, values[k_ - 1]);
    return k_;
  }
};

}  // namespace delfsearch
