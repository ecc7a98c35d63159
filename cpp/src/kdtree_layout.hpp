// Rows in blocks, and their norms: see kdtree.hpp for the layout. Shared by what builds.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#include "delfsearch/kdtree.hpp"
#include "delfsearch/quantizer.hpp"

namespace delfsearch::kdtree {

// Squared length of what each code stands for, seen from the middle of the range.
class NormTable {
 public:
  explicit NormTable(const Quantizer& quantizer) : d_(quantizer.dimension()), squares_(d_ * 256) {
    for (std::size_t j = 0; j < d_; ++j)
      for (int c = 0; c < 256; ++c) {
        const double x = static_cast<double>(quantizer.step[j]) * (c - 128);
        squares_[j * 256 + static_cast<std::size_t>(c)] = x * x;
      }
  }
  float operator()(const std::uint8_t* row) const {
    double sum = 0;
    for (std::size_t j = 0; j < d_; ++j) sum += squares_[j * 256 + row[j]];
    return static_cast<float>(sum);
  }

 private:
  std::size_t d_;
  std::vector<double> squares_;
};

inline void put_row(std::uint8_t* blocks, std::size_t d, std::size_t place,
                    const std::uint8_t* row) {
  std::uint8_t* block =
      blocks + place / kKdTreeBlock * kKdTreeBlock * padded_dimension(d) + place % kKdTreeBlock * 4;
  std::size_t j = 0;
  for (; j + 4 <= d; j += 4) std::memcpy(block + j * 16, row + j, 4);
  for (; j < d; ++j) block[j / 4 * 64 + j % 4] = row[j];
}

}  // namespace delfsearch::kdtree
