// Bits of a word.
#pragma once

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

// In plain arithmetic: without an instruction set of its own a compiler calls a table for it.
inline int count_bits(std::uint64_t word) {
  word -= word >> 1 & 0x5555555555555555ULL;
  word = (word & 0x3333333333333333ULL) + (word >> 2 & 0x3333333333333333ULL);
  word = (word + (word >> 4)) & 0x0f0f0f0f0f0f0f0fULL;
  return static_cast<int>(word * 0x0101010101010101ULL >> 56);
}

}  // namespace delfsearch
