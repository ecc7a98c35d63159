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

// A sequence of few words: which of them holds a number's bit is found by comparing with all. It
// has lower bits.
constexpr std::size_t kShortWords = 32;
struct ShortSequence {
  Sequence sequence;
  std::uint16_t before[kShortWords];  // numbers with bits before each word; the largest behind
};

// Lists of one such sequence each, as they lie in an inverted file, none of them empty.
constexpr std::size_t kShortLists = 16;
struct ShortLists {
  std::uint32_t starts[kShortLists];  // the place of the first code, rising; the largest behind
  std::uint32_t sizes[kShortLists];
  ShortSequence sequences[kShortLists];
};

// Words that were not packed so give some numbers.
struct Kernels {
  // Numbers at[0] ... at[count - 1], at rising.
  void (*get_some)(const Sequence& sequence, const std::uint32_t* at, std::size_t count,
                   std::uint32_t* out);
  // All n of them.
  void (*get_all)(const Sequence& sequence, std::size_t n, std::uint32_t* out);
  // Makes `sequence` of at most kShortWords upper words, below 2^16 numbers, ready for get_each.
  void (*open)(ShortSequence& short_sequence);
  // What the codes at `count` places are numbered; false where one is in none of the lists.
  bool (*get_each)(const ShortLists& lists, const std::int64_t* places, std::size_t count,
                   std::int64_t* numbers);
};

const Kernels& kernels();  // those of this processor, or of DELFSEARCH_SIMD

const Kernels& kernels_scalar();
#ifdef DELFSEARCH_X86
const Kernels& kernels_bmi2();
#endif

}  // namespace delfsearch::ids
