// Codes of a product quantizer, packed to the bit (Jegou et al. 2011; paper Sec. 5.4).
//
// A vector is cut into m parts of equal length; each part is replaced by the number of its nearest
// centroid of 2^bits, bits = 4 ... 8. Codes lie in blocks of 64, the last one filled up with zeros.
// A block holds, for each part: the lower 4 bits of all 64 numbers in 32 bytes (codes 0 ... 31 in
// the lower halves, 32 ... 63 in the upper ones), then for each further bit 8 bytes with one bit a
// code. So 10 parts of 5 bits take 400 bytes for 64 codes, 6.25 each, and one load gives a register
// 64 numbers.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "delfsearch/span.hpp"

namespace delfsearch {

constexpr std::size_t kCodeBlock = 64;

struct ProductCode {
  std::size_t n_parts = 10;
  int bits = 5;

  std::size_t n_centroids() const { return std::size_t{1} << bits; }
  std::size_t part_bytes() const { return 32 + 8 * static_cast<std::size_t>(bits - 4); }
  std::size_t block_bytes() const { return n_parts * part_bytes(); }
  std::size_t n_blocks(std::size_t n) const { return (n + kCodeBlock - 1) / kCodeBlock; }
  // Throws std::invalid_argument where bits or n_parts are out of range.
  void check() const;
};

// numbers is (n, n_parts) row-major, each below n_centroids.
std::vector<std::uint8_t> pack_numbers(const ProductCode& code, Span<const std::uint8_t> numbers);

// The (n, n_parts) numbers of the first n codes of packed blocks.
std::vector<std::uint8_t> unpack_numbers(const ProductCode& code, Span<const std::uint8_t> blocks,
                                         std::size_t n);

// Sets the numbers of one code of a block that is zero there.
void put_code(const ProductCode& code, std::uint8_t* block, std::size_t place,
              const std::uint8_t* numbers);
// Reads them.
void get_code(const ProductCode& code, const std::uint8_t* block, std::size_t place,
              std::uint8_t* numbers);

}  // namespace delfsearch
