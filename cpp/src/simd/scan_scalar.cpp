#include <algorithm>
#include <vector>

#include "scan_kernels.hpp"

namespace delfsearch::scan {
namespace {

std::size_t may_pass(const ProductCode& code, const std::uint8_t* blocks, std::size_t n_blocks,
                     const ByteTable* tables, std::size_t n_tables, Passed* out) {
  std::vector<std::uint8_t> numbers(code.n_parts);
  Passed* const begin = out;
  for (std::size_t b = 0; b < n_blocks; ++b) {
    std::uint64_t passes[kTogether] = {};
    for (std::size_t place = 0; place < kCodeBlock; ++place) {
      get_code(code, blocks + b * code.block_bytes(), place, numbers.data());
      for (std::size_t q = 0; q < n_tables; ++q) {
        unsigned sum = 0;
        for (std::size_t part = 0; part < code.n_parts; ++part)
          sum += tables[q].entries[part * code.n_centroids() + numbers[part]];
        passes[q] |= std::uint64_t{std::min(sum, 255u) <= tables[q].limit} << place;
      }
    }
    for (std::size_t q = 0; q < n_tables; ++q)
      if (passes[q] != 0)
        *out++ = {static_cast<std::uint32_t>(b), static_cast<std::uint32_t>(q), passes[q]};
  }
  return static_cast<std::size_t>(out - begin);
}

std::uint64_t distances(const ProductCode& code, const std::uint8_t* block, const float* entries,
                        float limit, float* out) {
  std::fill(out, out + kCodeBlock, 0.0f);
  for (std::size_t part = 0; part < code.n_parts; ++part) {
    const std::uint8_t* at = block + part * code.part_bytes();
    const float* table = entries + part * code.n_centroids();
    for (std::size_t place = 0; place < kCodeBlock; ++place) {
      unsigned number = at[place % 32] >> (place < 32 ? 0 : 4) & 15u;
      for (int bit = 4; bit < code.bits; ++bit) {
        const unsigned byte = at[32 + 8 * static_cast<std::size_t>(bit - 4) + place / 8];
        number |= (byte >> place % 8 & 1u) << bit;
      }
      out[place] = out[place] + table[number];
    }
  }
  std::uint64_t passed = 0;
  for (std::size_t place = 0; place < kCodeBlock; ++place)
    passed |= static_cast<std::uint64_t>(out[place] <= limit) << place;
  return passed;
}

}  // namespace

const Kernels& kernels_scalar() {
  static const Kernels table{may_pass, distances};
  return table;
}

}  // namespace delfsearch::scan
