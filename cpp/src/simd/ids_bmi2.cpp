// AVX2 and BMI2: a deposit finds the nth bit of a word.
#include "ids_kernels.hpp"

#ifdef DELFSEARCH_X86
#include <immintrin.h>

#include <cstring>

#if defined(__GNUC__) || defined(__clang__)
#define DELFSEARCH_TARGET __attribute__((target("avx2,bmi,bmi2,popcnt")))
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

DELFSEARCH_INLINE std::size_t first(std::uint64_t word) {
  return static_cast<std::size_t>(_tzcnt_u64(word));
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

DELFSEARCH_INLINE __m256i eight(const void* from) {
  return _mm256_loadu_si256(static_cast<const __m256i*>(from));
}

// Where the greater of two is the place, the other is at most that.
DELFSEARCH_INLINE std::size_t begun(const std::uint32_t* starts, std::uint32_t place) {
  const __m256i all = _mm256_set1_epi32(static_cast<int>(place));
  const __m256i low = _mm256_cmpeq_epi32(_mm256_max_epu32(eight(starts), all), all);
  const __m256i high = _mm256_cmpeq_epi32(_mm256_max_epu32(eight(starts + 8), all), all);
  const auto mask = static_cast<unsigned>(_mm256_movemask_epi8(_mm256_packs_epi32(low, high)));
  return static_cast<std::size_t>(_mm_popcnt_u32(mask)) / 2;
}

DELFSEARCH_INLINE std::size_t word_of(const std::uint16_t* before, std::size_t i) {
  const __m256i all = _mm256_set1_epi16(static_cast<short>(i));
  const __m256i low = _mm256_cmpeq_epi16(_mm256_max_epu16(eight(before), all), all);
  const __m256i high = _mm256_cmpeq_epi16(_mm256_max_epu16(eight(before + 16), all), all);
  const auto mask = static_cast<unsigned>(_mm256_movemask_epi8(_mm256_packs_epi16(low, high)));
  return static_cast<std::size_t>(_mm_popcnt_u32(mask)) - 1;  // none is before the first word
}

#include "ids_lanes.inl"

void get_some(const Sequence& sequence, const std::uint32_t* at, std::size_t count,
              std::uint32_t* out) {
  // All bits in the upper part: nothing to load.
  if (sequence.low_bits == 0) return kernels_scalar().get_some(sequence, at, count, out);
  get_some_of(sequence, at, count, out);
}

void get_all(const Sequence& sequence, std::size_t n, std::uint32_t* out) {
  if (sequence.low_bits == 0) return kernels_scalar().get_all(sequence, n, out);
  get_all_of(sequence, n, out);
}

}  // namespace

const Kernels& kernels_bmi2() {
  static const Kernels table{get_some, get_all, open_short, get_each_of};
  return table;
}

}  // namespace delfsearch::ids
#endif
