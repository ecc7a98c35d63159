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

// word != 0
inline int highest_bit(std::uint64_t word) {
#if defined(__GNUC__) || defined(__clang__)
  return 63 - __builtin_clzll(word);
#else
  int bit = 63;
  while (!(word >> bit & 1)) --bit;
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

// Where the bit lies that n others, n < 64, lie below; 64 or more without one.
inline int nth_bit(std::uint64_t word, std::uint64_t n) {
  constexpr std::uint64_t kOnes = 0x0101010101010101ULL, kTops = 0x8080808080808080ULL;
  std::uint64_t sums = word - (word >> 1 & 0x5555555555555555ULL);
  sums = (sums & 0x3333333333333333ULL) + (sums >> 2 & 0x3333333333333333ULL);
  sums = ((sums + (sums >> 4)) & 0x0f0f0f0f0f0f0f0fULL) * kOnes;  // byte j: bits of bytes 0 to j
  // Bytes that end before the bit, by their top bits: sums are at most 64.
  const std::uint64_t ended = ((n * kOnes | kTops) - sums) & kTops;
  const int byte = static_cast<int>((ended >> 7) * kOnes >> 56);
  if (byte == 8) return 64;
  auto left = static_cast<unsigned>(n - (sums << 8 >> 8 * byte & 255));
  auto bits = static_cast<unsigned>(word >> 8 * byte & 255);
  for (; left > 0; --left) bits &= bits - 1;
  return 8 * byte + lowest_bit(bits);
}

}  // namespace delfsearch
