// The scan of one posting list for some queries: tables, leaves by their bounds, blocks of codes.
// What it promises is in inverted_file.hpp.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "delfsearch/aligned.hpp"
#include "delfsearch/inverted_file.hpp"
#include "nearest_codes.hpp"
#include "simd/scan_kernels.hpp"

namespace delfsearch {

// One query at one list.
struct Visit {
  NearestCodes* nearest = nullptr;
  const float* table = nullptr;       // (n_parts, n_centroids)
  const float* least = nullptr;       // of each part
  AlignedVector<std::uint8_t> bytes;  // the table less `least`, rounded down, of `unit`
  double base = 0.0;                  // sum of `least`
  double unit = 0.0;                  // 0: bytes are not made
  std::size_t n_parts = 0;

  // Distance left above `base`, with room for rounding: a float sum of up to 4,096 entries is off
  // by less than 1e-3 of itself.
  double room() const {
    return static_cast<double>(nearest->limit()) *
               (1.0 + 1.2e-7 * static_cast<double>(n_parts + 2)) -
           base;
  }
  // The largest sum of bytes that a code within the limit can have.
  unsigned byte_limit() const;
  void make_bytes(const ProductCode& code, const scan::Kernels& kernels);
};

class ListScan {
 public:
  ListScan(const InvertedFileView& file, const ScanOptions& options);

  // Scans a list, not empty, for up to scan::kTogether queries.
  void list(std::size_t list, const float* const* queries, NearestCodes* const* nearest,
            std::size_t n);

  // That the beginning of a list, and what its codes mean, be in the cache when it is scanned.
  void ask_for(std::size_t list) const;

 private:
  const InvertedFileView& file_;
  const ScanOptions& options_;
  const scan::Kernels& kernels_;
  const ProductCode code_;
  ListAxes axes_;
  AlignedVector<float> scratch_, tables_;
  std::vector<float> least_, bounds_, by_leaf_, sorted_, values_;
  std::vector<Visit> visits_;
  std::vector<scan::Passed> passed_;
  std::vector<std::uint32_t> order_, places_;
  std::size_t last_block_ = 0;
  std::uint64_t tail_ = 0;  // codes of the last block

  bool any_allowed(std::size_t begin, std::size_t end) const;
  // `after` is what is scanned after these blocks, or null.
  void blocks(std::size_t begin, std::size_t end, const std::uint8_t* after, Visit* const* visits,
              std::size_t n);
  void leaves(std::size_t list, std::size_t begin, std::size_t end, Visit* const* visits,
              std::size_t n_visits);
  std::size_t only_allowed(std::size_t from, scan::Passed* passed, std::size_t n) const;
};

}  // namespace delfsearch
