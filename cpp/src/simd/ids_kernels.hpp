// Reading some numbers of a sequence packed by Elias and Fano's code (packed_ids.hpp), one function
// per instruction set.
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(__x86_64__) || defined(_M_X64)
#define DELFSEARCH_X86 1
#endif

namespace delfsearch::ids {

constexpr std::size_t kSample = 256;  // numbers from one sample to the next

struct Sequence {
  const std::uint64_t* samples;  // where the bits of numbers 256, 512, ... lie, two a word
  const std::uint64_t* high;
  const std::uint64_t* low;
  std::size_t n_high_words, n_low_words;
  int low_bits;
  std::uint64_t greatest;  // what a damaged file may not exceed
};

// Numbers at[0] ... at[count - 1], at rising. Words that were not packed so give some numbers.
using GetSome = void (*)(const Sequence& sequence, const std::uint32_t* at, std::size_t count,
                         std::uint32_t* out);

GetSome get_some();  // that of this processor, or of DELFSEARCH_SIMD

void get_some_scalar(const Sequence& sequence, const std::uint32_t* at, std::size_t count,
                     std::uint32_t* out);
#ifdef DELFSEARCH_X86
void get_some_bmi2(const Sequence& sequence, const std::uint32_t* at, std::size_t count,
                   std::uint32_t* out);
#endif

}  // namespace delfsearch::ids
