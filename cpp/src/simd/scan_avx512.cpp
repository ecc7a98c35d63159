// AVX-512 VBMI: one vpermb looks up a part of 64 codes. Up to 5 bits a part fit one register, 6
// one, 7 two, 8 four.
#include "scan_kernels.hpp"

#ifdef DELFSEARCH_X86
#if defined(__GNUC__) && !defined(__clang__)
// GCC's own header leaves vectors uninitialised on purpose and then warns of it.
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>

#include <cstring>

#if defined(__GNUC__) || defined(__clang__)
#define DELFSEARCH_TARGET \
  __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi,bmi,bmi2,popcnt")))
#define DELFSEARCH_INLINE DELFSEARCH_TARGET inline __attribute__((always_inline))
#else
#define DELFSEARCH_TARGET
#define DELFSEARCH_INLINE inline
#endif

namespace delfsearch::scan {
namespace {

// The 64 numbers of a part of a block.
template <int kBits>
DELFSEARCH_INLINE __m512i unpack(const std::uint8_t* part) {
  const __m256i packed = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(part));
  const __m512i both =
      _mm512_inserti64x4(_mm512_castsi256_si512(packed), _mm256_srli_epi16(packed, 4), 1);
  __m512i numbers = _mm512_and_si512(both, _mm512_set1_epi8(15));
  for (int bit = 4; bit < kBits; ++bit) {
    std::uint64_t mask;
    std::memcpy(&mask, part + 32 + 8 * (bit - 4), 8);
    numbers =
        _mm512_mask_add_epi8(numbers, mask, numbers, _mm512_set1_epi8(static_cast<char>(1 << bit)));
  }
  return numbers;
}

// A part's table of 2^kBits bytes.
template <int kBits>
DELFSEARCH_INLINE __m512i look_up(const std::uint8_t* entries, __m512i numbers) {
  if constexpr (kBits == 4) {
    const __m128i table = _mm_loadu_si128(reinterpret_cast<const __m128i*>(entries));
    return _mm512_permutexvar_epi8(numbers, _mm512_broadcast_i32x4(table));
  } else if constexpr (kBits == 5) {
    const __m256i table = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(entries));
    return _mm512_permutexvar_epi8(numbers, _mm512_castsi256_si512(table));
  } else if constexpr (kBits == 6) {
    return _mm512_permutexvar_epi8(numbers, _mm512_loadu_si512(entries));
  } else if constexpr (kBits == 7) {
    return _mm512_permutex2var_epi8(_mm512_loadu_si512(entries), numbers,
                                    _mm512_loadu_si512(entries + 64));
  } else {
    const __m512i low = _mm512_permutex2var_epi8(_mm512_loadu_si512(entries), numbers,
                                                 _mm512_loadu_si512(entries + 64));
    const __m512i high = _mm512_permutex2var_epi8(_mm512_loadu_si512(entries + 128), numbers,
                                                  _mm512_loadu_si512(entries + 192));
    return _mm512_mask_blend_epi8(_mm512_movepi8_mask(numbers), low, high);
  }
}

template <int kBits, int kTables>
DELFSEARCH_TARGET std::size_t may_pass_of(std::size_t n_parts, const std::uint8_t* blocks,
                                          std::size_t n_blocks, const ByteTable* tables,
                                          Passed* out) {
  constexpr std::size_t kPartBytes = 32 + 8 * (kBits - 4);
  constexpr std::size_t kEntries = std::size_t{1} << kBits;
  Passed* const begin = out;
  __m512i limits[kTables];
  const std::uint8_t* entries[kTables];
  for (int q = 0; q < kTables; ++q) {
    limits[q] = _mm512_set1_epi8(static_cast<char>(tables[q].limit));
    entries[q] = tables[q].entries;
  }
  for (std::size_t b = 0; b < n_blocks; ++b) {
    const std::uint8_t* part = blocks + b * n_parts * kPartBytes;
    __m512i sums[kTables];
    {
      const __m512i numbers = unpack<kBits>(part);
      for (int q = 0; q < kTables; ++q) sums[q] = look_up<kBits>(entries[q], numbers);
    }
    for (std::size_t p = 1; p < n_parts; ++p) {
      part += kPartBytes;
      const __m512i numbers = unpack<kBits>(part);
      for (int q = 0; q < kTables; ++q)
        sums[q] = _mm512_adds_epu8(sums[q], look_up<kBits>(entries[q] + p * kEntries, numbers));
    }
    for (int q = 0; q < kTables; ++q) {
      const std::uint64_t within = _mm512_cmple_epu8_mask(sums[q], limits[q]);
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
  __m512 sums[4];
  for (int v = 0; v < 4; ++v) sums[v] = _mm512_setzero_ps();
  for (std::size_t p = 0; p < n_parts;
       ++p, part += kPartBytes, entries += std::size_t{1} << kBits) {
    const __m512i numbers = unpack<kBits>(part);
    const __m128i quarter[4] = {
        _mm512_extracti32x4_epi32(numbers, 0), _mm512_extracti32x4_epi32(numbers, 1),
        _mm512_extracti32x4_epi32(numbers, 2), _mm512_extracti32x4_epi32(numbers, 3)};
    for (int v = 0; v < 4; ++v) {
      const __m512i at = _mm512_cvtepu8_epi32(quarter[v]);
      __m512 value;
      if constexpr (kBits == 4)
        value = _mm512_permutexvar_ps(at, _mm512_loadu_ps(entries));
      else if constexpr (kBits == 5)
        value = _mm512_permutex2var_ps(_mm512_loadu_ps(entries), at, _mm512_loadu_ps(entries + 16));
      else
        value = _mm512_i32gather_ps(at, entries, 4);
      sums[v] = _mm512_add_ps(sums[v], value);
    }
  }
  std::uint64_t passed = 0;
  for (int v = 0; v < 4; ++v) {
    _mm512_storeu_ps(out + 16 * v, sums[v]);
    const std::uint64_t mask = _mm512_cmp_ps_mask(sums[v], _mm512_set1_ps(limit), _CMP_LE_OQ);
    passed |= mask << 16 * v;
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

const Kernels& kernels_avx512() {
  static const Kernels table{may_pass, distances};
  return table;
}

}  // namespace delfsearch::scan
#endif
