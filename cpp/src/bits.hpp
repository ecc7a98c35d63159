// Bits of a word.
#pragma once

#include <bitset>
#include <cstdint>

namespace delfsearch {

// word != 0
inline int lowest_bit(std::uint64_t word) {
#if defined(__GNUC__) || defined(__clang__)
  return __builtin_ctzll(word);
#else
  int bit = 0;
  while (!(word >> bit & 1)) ++bit;
  return bit;
#endif
}

inline int count_bits(std::uint64_t word) {
  return static_cast<int>(std::bitset<64>(word).count());
}

}  // namespace delfsearch
