// AVX2: pshufb looks up 16 entries for 32 codes; the bits above the lower four choose among the
// results.
#include "scan_kernels.hpp"

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

namespace delfsearch::scan {
namespace {

// 32 numbers of a part: the lower four bits, and for each further bit a byte of ones where it is
// set.
template <int kBits>
struct Numbers {
  __m256i low;
  __m256i set[kBits > 4 ? kBits - 4 : 1];
};

template <int kBits>
DELFSEARCH_INLINE Numbers<kBits> unpack(const std::uint8_t* part, int half) {
  Numbers<kBits> numbers;
  const __m256i packed = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(part));
  const __m256i here = half == 0 ? packed : _mm256_srli_epi16(packed, 4);
  numbers.low = _mm256_and_si256(here, _mm256_set1_epi8(15));
  const __m256i spread = _mm256_setr_epi8(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2,
                                          2, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3, 3, 3);
  const __m256i place = _mm256_set1_epi64x(static_cast<long long>(0x8040201008040201ULL));
  for (int bit = 4; bit < kBits; ++bit) {
    std::int32_t bits;
    std::memcpy(&bits, part + 32 + 8 * (bit - 4) + 4 * half, 4);
    const __m256i bytes = _mm256_shuffle_epi8(_mm256_set1_epi32(bits), spread);
    numbers.set[bit - 4] = _mm256_cmpeq_epi8(_mm256_and_si256(bytes, place), place);
  }
  return numbers;
}

// Entries first ... first + 2^kLevel - 1 of a table, by the lower kLevel bits.
template <int kLevel, int kBits>
DELFSEARCH_INLINE __m256i look_up(const std::uint8_t* entries, const Numbers<kBits>& numbers) {
  if constexpr (kLevel == 4) {
    const __m128i table = _mm_loadu_si128(reinterpret_cast<const __m128i*>(entries));
    return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(table), numbers.low);
  } else {
    const __m256i low = look_up<kLevel - 1, kBits>(entries, numbers);
    const __m256i high =
        look_up<kLevel - 1, kBits>(entries + (std::size_t{1} << (kLevel - 1)), numbers);
    return _mm256_blendv_epi8(low, high, numbers.set[kLevel - 5]);
  }
}

template <int kBits, int kTables>
DELFSEARCH_TARGET std::size_t may_pass_of(std::size_t n_parts, const std::uint8_t* blocks,
                                          std::size_t n_blocks, const ByteTable* tables,
                                          Passed* out) {
  constexpr std::size_t kPartBytes = 32 + 8 * (kBits - 4);
  constexpr std::size_t kEntries = std::size_t{1} << kBits;
  Passed* const begin = out;
  for (std::size_t b = 0; b < n_blocks; ++b) {
    const std::uint8_t* part = blocks + b * n_parts * kPartBytes;
    __m256i sums[kTables][2];
    for (int q = 0; q < kTables; ++q) sums[q][0] = sums[q][1] = _mm256_setzero_si256();
    for (std::size_t p = 0; p < n_parts; ++p, part += kPartBytes) {
      for (int half = 0; half < 2; ++half) {
        const Numbers<kBits> numbers = unpack<kBits>(part, half);
        for (int q = 0; q < kTables; ++q)
          sums[q][half] = _mm256_adds_epu8(
              sums[q][half], look_up<kBits, kBits>(tables[q].entries + p * kEntries, numbers));
      }
    }
    for (int q = 0; q < kTables; ++q) {
      const __m256i limit = _mm256_set1_epi8(static_cast<char>(tables[q].limit));
      std::uint64_t within = 0;
      for (int half = 0; half < 2; ++half) {
        const __m256i least = _mm256_min_epu8(sums[q][half], limit);
        const int mask = _mm256_movemask_epi8(_mm256_cmpeq_epi8(least, sums[q][half]));
        within |= static_cast<std::uint64_t>(static_cast<unsigned>(mask)) << 32 * half;
      }
      *out = {static_cast<std::uint32_t>(b), static_cast<std::uint32_t>(q), within};
      out += within != 0;
    }
  }
  return static_cast<std::size_t>(out - begin);
}

template <int kBits>
std::size_t may_pass_bits(std::size_t n_parts, const std::uint8_t* blocks, std::size_t n_blocks,
                          const ByteTable* tables, std::size_t n_tables, Passed* out) {
  switch (n_tables) {
    case 1:
      return may_pass_of<kBits, 1>(n_parts, blocks, n_blocks, tables, out);
    case 2:
      return may_pass_of<kBits, 2>(n_parts, blocks, n_blocks, tables, out);
    case 3:
      return may_pass_of<kBits, 3>(n_parts, blocks, n_blocks, tables, out);
    default:
      return may_pass_of<kBits, 4>(n_parts, blocks, n_blocks, tables, out);
  }
}

std::size_t may_pass(const ProductCode& code, const std::uint8_t* blocks, std::size_t n_blocks,
                     const ByteTable* tables, std::size_t n_tables, Passed* out) {
  switch (code.bits) {
    case 4:
      return may_pass_bits<4>(code.n_parts, blocks, n_blocks, tables, n_tables, out);
    case 5:
      return may_pass_bits<5>(code.n_parts, blocks, n_blocks, tables, n_tables, out);
    case 6:
      return may_pass_bits<6>(code.n_parts, blocks, n_blocks, tables, n_tables, out);
    case 7:
      return may_pass_bits<7>(code.n_parts, blocks, n_blocks, tables, n_tables, out);
    default:
      return may_pass_bits<8>(code.n_parts, blocks, n_blocks, tables, n_tables, out);
  }
}

template <int kBits>
DELFSEARCH_TARGET std::uint64_t distances_of(std::size_t n_parts, const std::uint8_t* part,
                                             const float* entries, float limit, float* out) {
  constexpr std::size_t kPartBytes = 32 + 8 * (kBits - 4);
  __m256 sums[8];
  for (int v = 0; v < 8; ++v) sums[v] = _mm256_setzero_ps();
  for (std::size_t p = 0; p < n_parts;
       ++p, part += kPartBytes, entries += std::size_t{1} << kBits) {
    alignas(32) std::uint8_t numbers[kCodeBlock];
    for (int half = 0; half < 2; ++half) {
      const Numbers<kBits> unpacked = unpack<kBits>(part, half);
      __m256i number = unpacked.low;
      for (int bit = 4; bit < kBits; ++bit)
        number = _mm256_or_si256(
            number,
            _mm256_and_si256(unpacked.set[bit - 4], _mm256_set1_epi8(static_cast<char>(1 << bit))));
      _mm256_store_si256(reinterpret_cast<__m256i*>(numbers + 32 * half), number);
    }
    for (int v = 0; v < 8; ++v) {
      const __m256i at =
          _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(numbers + 8 * v)));
      sums[v] = _mm256_add_ps(sums[v], _mm256_i32gather_ps(entries, at, 4));
    }
  }
  std::uint64_t passed = 0;
  for (int v = 0; v < 8; ++v) {
    _mm256_storeu_ps(out + 8 * v, sums[v]);
    const int mask = _mm256_movemask_ps(_mm256_cmp_ps(sums[v], _mm256_set1_ps(limit), _CMP_LE_OQ));
    passed |= static_cast<std::uint64_t>(static_cast<unsigned>(mask)) << 8 * v;
  }
  return passed;
}

std::uint64_t distances(const ProductCode& code, const std::uint8_t* block, const float* entries,
                        float limit, float* out) {
  switch (code.bits) {
    case 4:
      return distances_of<4>(code.n_parts, block, entries, limit, out);
    case 5:
      return distances_of<5>(code.n_parts, block, entries, limit, out);
    case 6:
      return distances_of<6>(code.n_parts, block, entries, limit, out);
    case 7:
      return distances_of<7>(code.n_parts, block, entries, limit, out);
    default:
      return distances_of<8>(code.n_parts, block, entries, limit, out);
  }
}

}  // namespace

const Kernels& kernels_avx2() {
  static const Kernels table{may_pass, distances};
  return table;
}

}  // namespace delfsearch::scan
#endif
