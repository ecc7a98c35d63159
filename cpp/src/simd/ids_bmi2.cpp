// BMI2, which all processors with AVX2 have: a deposit finds the nth bit of a word.
#include "ids_kernels.hpp"

#ifdef DELFSEARCH_X86
#include <immintrin.h>

#include <cstring>

#if defined(__GNUC__) || defined(__clang__)
#define DELFSEARCH_TARGET __attribute__((target("bmi,bmi2,popcnt")))
#define DELFSEARCH_INLINE DELFSEARCH_TARGET inline __attribute__((always_inline))
#else
#define DELFSEARCH_TARGET
#define DELFSEARCH_INLINE inline
#endif

namespace delfsearch::ids {
namespace {

DELFSEARCH_INLINE std::size_t how_many(std::uint64_t word) {
  return static_cast<std::size_t>(_mm_popcnt_u64(word));
}

// 64 without so many.
DELFSEARCH_INLINE std::size_t nth(std::uint64_t word, std::size_t n) {
  return n < 64 ? static_cast<std::size_t>(_tzcnt_u64(_pdep_u64(std::uint64_t{1} << n, word))) : 64;
}

// One load from the byte where the bits begin, or from as late as eight bytes are left.
DELFSEARCH_INLINE std::uint64_t low_part(const Sequence& sequence, std::size_t i) {
  const std::size_t at = i * static_cast<std::size_t>(sequence.low_bits);
  const std::size_t last = 8 * sequence.n_low_words - 8;
  const std::size_t byte = at / 8 < last ? at / 8 : last;
  std::uint64_t word;
  std::memcpy(&word, reinterpret_cast<const unsigned char*>(sequence.low) + byte, 8);
  return _bzhi_u64(word >> (at - 8 * byte), static_cast<unsigned>(sequence.low_bits));
}

#include "ids_lanes.inl"

void get_some(const Sequence& sequence, const std::uint32_t* at, std::size_t count,
              std::uint32_t* out) {
  // All bits in the upper part: nothing to load.
  if (sequence.low_bits == 0) return kernels_scalar().get_some(sequence, at, count, out);
  get_some_of(sequence, at, count, out);
}

}  // namespace

const Kernels& kernels_bmi2() {
  static const Kernels table{get_some, open_short, get_each_of};
  return table;
}

}  // namespace delfsearch::ids
#endif
