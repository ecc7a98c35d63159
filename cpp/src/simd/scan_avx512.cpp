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
#include <limits>

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
  // Loaded twice and shifted in one half: no shuffle, of which there is one a cycle.
  const __m512i twice =
      _mm512_broadcast_i64x4(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(part)));
  const __m512i shift = _mm512_inserti64x4(_mm512_setzero_si512(), _mm256_set1_epi16(4), 1);
  __m512i numbers = _mm512_and_si512(_mm512_srlv_epi16(twice, shift), _mm512_set1_epi8(15));
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
DELFSEARCH_TARGET void may_pass_of(std::size_t n_parts, const std::uint8_t* blocks,
                                   std::size_t n_blocks, const std::uint8_t* next,
                                   const ByteTable* tables, Passed* const* out,
                                   std::size_t* counts) {
  constexpr std::size_t kPartBytes = 32 + 8 * (kBits - 4);
  constexpr std::size_t kEntries = std::size_t{1} << kBits;
  __m512i limits[kTables];
  const std::uint8_t* entries[kTables];
  Passed* to[kTables];
  for (int q = 0; q < kTables; ++q) {
    limits[q] = _mm512_set1_epi8(static_cast<char>(tables[q].limit));
    entries[q] = tables[q].entries;
    to[q] = out[q];
  }
  for (std::size_t b = 0; b < n_blocks; ++b) {
    const std::uint8_t* part = blocks + b * n_parts * kPartBytes;
    ask_for_share(next, b, n_blocks, n_parts * kPartBytes);
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
      const std::uint64_t codes = _mm512_cmple_epu8_mask(sums[q], limits[q]);
      *to[q] = {codes, static_cast<std::uint32_t>(b)};
      to[q] += codes != 0;
    }
  }
  for (int q = 0; q < kTables; ++q) counts[q] = static_cast<std::size_t>(to[q] - out[q]);
}

// Of a register of 64 numbers, byte j of each 32-bit lane: codes j, j + 4, ... The lookups below
// mind the lower 4 or 5 bits of a lane alone.
template <int kBits>
DELFSEARCH_INLINE __m512 entries_at(const float* entries, __m512i lanes) {
  if constexpr (kBits == 4) {
    return _mm512_permutexvar_ps(lanes, _mm512_loadu_ps(entries));
  } else if constexpr (kBits == 5) {
    return _mm512_permutex2var_ps(_mm512_loadu_ps(entries), lanes, _mm512_loadu_ps(entries + 16));
  } else {
    const __m512i numbers = _mm512_and_si512(lanes, _mm512_set1_epi32(255));
    return _mm512_i32gather_ps(numbers, entries, 4);
  }
}

#include "scan_single.inl"

// So many codes of a block cost less one by one; so many are picked into one register.
constexpr int kFew = 1, kPicked = 16;

// The distances of the codes of a block whose numbers in it are the lowest bytes of `picked`.
template <int kBits>
DELFSEARCH_INLINE __m512 distances_picked(std::size_t n_parts, const std::uint8_t* part,
                                          const float* entries, __m512i picked) {
  constexpr std::size_t kPartBytes = 32 + 8 * (kBits - 4);
  __m512 sum = _mm512_setzero_ps();
  for (std::size_t p = 0; p < n_parts; ++p, part += kPartBytes, entries += std::size_t{1} << kBits)
    sum = _mm512_add_ps(
        sum, entries_at<kBits>(entries, _mm512_permutexvar_epi8(picked, unpack<kBits>(part))));
  return sum;
}

template <int kBits>
DELFSEARCH_TARGET std::size_t distances_of(std::size_t n_parts, const std::uint8_t* blocks,
                                           const Passed* which, std::size_t n, const float* entries,
                                           float limit, std::uint32_t first_place, float* values,
                                           std::uint32_t* places) {
  constexpr std::size_t kPartBytes = 32 + 8 * (kBits - 4);
  const __m512i fourth =
      _mm512_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28, 32, 36, 40, 44, 48, 52, 56, 60);
  const __m512 limits = _mm512_set1_ps(limit);
  std::size_t found = 0;
  for (std::size_t i = 0; i < n; ++i) {
    const std::uint32_t first =
        first_place + which[i].block * static_cast<std::uint32_t>(kCodeBlock);
    const std::uint8_t* part = blocks + which[i].block * n_parts * kPartBytes;
    if (_mm_popcnt_u64(which[i].codes) <= kFew) {
      for (std::uint64_t codes = which[i].codes; codes != 0; codes &= codes - 1) {
        const auto place = static_cast<std::uint32_t>(_tzcnt_u64(codes));
        values[found] = distance_of<kBits>(n_parts, part, entries, place);
        places[found] = first + place;
        found += values[found] <= limit;
      }
      continue;
    }
    if (_mm_popcnt_u64(which[i].codes) <= kPicked) {
      alignas(64) std::uint32_t at[kPicked] = {};
      std::size_t n_picked = 0;
      for (std::uint64_t codes = which[i].codes; codes != 0; codes &= codes - 1)
        at[n_picked++] = static_cast<std::uint32_t>(_tzcnt_u64(codes));
      const __m512i picked = _mm512_load_si512(at);
      const __m512 sums = distances_picked<kBits>(n_parts, part, entries, picked);
      const __mmask16 within = _mm512_mask_cmp_ps_mask(static_cast<__mmask16>((1u << n_picked) - 1),
                                                       sums, limits, _CMP_LE_OQ);
      const __m512i place = _mm512_add_epi32(picked, _mm512_set1_epi32(static_cast<int>(first)));
      _mm512_storeu_ps(values + found, _mm512_maskz_compress_ps(within, sums));
      _mm512_storeu_si512(places + found, _mm512_maskz_compress_epi32(within, place));
      found += static_cast<std::size_t>(_mm_popcnt_u32(within));
      continue;
    }
    const float* table = entries;
    __m512 sums[4];
    for (int j = 0; j < 4; ++j) sums[j] = _mm512_setzero_ps();
    for (std::size_t p = 0; p < n_parts;
         ++p, part += kPartBytes, table += std::size_t{1} << kBits) {
      const __m512i numbers = unpack<kBits>(part);
      sums[0] = _mm512_add_ps(sums[0], entries_at<kBits>(table, numbers));
      sums[1] = _mm512_add_ps(sums[1], entries_at<kBits>(table, _mm512_srli_epi32(numbers, 8)));
      sums[2] = _mm512_add_ps(sums[2], entries_at<kBits>(table, _mm512_srli_epi32(numbers, 16)));
      sums[3] = _mm512_add_ps(sums[3], entries_at<kBits>(table, _mm512_srli_epi32(numbers, 24)));
    }
    __mmask16 within[4];
    unsigned any = 0;
    for (int j = 0; j < 4; ++j) {
      const std::uint64_t wanted = _pext_u64(which[i].codes >> j, 0x1111111111111111ULL);
      within[j] =
          _mm512_mask_cmp_ps_mask(static_cast<__mmask16>(wanted), sums[j], limits, _CMP_LE_OQ);
      any |= within[j];
    }
    if (any == 0) continue;
    for (int j = 0; j < 4; ++j) {
      const __m512i at = _mm512_add_epi32(fourth, _mm512_set1_epi32(static_cast<int>(first) + j));
      // Compressed in a register: doing it in memory is slow on some processors.
      _mm512_storeu_ps(values + found, _mm512_maskz_compress_ps(within[j], sums[j]));
      _mm512_storeu_si512(places + found, _mm512_maskz_compress_epi32(within[j], at));
      found += static_cast<std::size_t>(_mm_popcnt_u32(within[j]));
    }
  }
  return found;
}

DELFSEARCH_TARGET void round_down(const ProductCode& code, const float* entries, const float* least,
                                  float scale, std::uint8_t* bytes) {
  const __m512 scales = _mm512_set1_ps(scale), most = _mm512_set1_ps(255.0f);
  for (std::size_t part = 0; part < code.n_parts; ++part) {
    const __m512 lowest = _mm512_set1_ps(least[part]);
    for (std::size_t c = 0; c < code.n_centroids(); c += 16, entries += 16, bytes += 16) {
      const __m512 value = _mm512_mul_ps(_mm512_sub_ps(_mm512_loadu_ps(entries), lowest), scales);
      const __m512i whole = _mm512_cvttps_epi32(_mm512_min_ps(value, most));
      _mm_storeu_si128(reinterpret_cast<__m128i*>(bytes), _mm512_cvtusepi32_epi8(whole));
    }
  }
}

// Lanes are leaves.
DELFSEARCH_TARGET void leaf_bounds(const ProductCode& code, const std::uint32_t* present,
                                   std::size_t n_leaves, const float* entries, float* bounds) {
  const std::size_t words = (code.n_centroids() + 31) / 32, stride = code.n_parts * words;
  const __m512i steps =
      _mm512_mullo_epi32(_mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15),
                         _mm512_set1_epi32(static_cast<int>(stride)));
  for (std::size_t leaf = 0; leaf < n_leaves; leaf += 16, present += 16 * stride) {
    const auto here =
        static_cast<__mmask16>(n_leaves - leaf < 16 ? (1u << (n_leaves - leaf)) - 1 : 0xffff);
    __m512 sum = _mm512_setzero_ps();
    for (std::size_t part = 0; part < code.n_parts; ++part) {
      __m512 least = _mm512_set1_ps(std::numeric_limits<float>::infinity());
      for (std::size_t c = 0; c < code.n_centroids(); c += 32) {
        const __m512i bits = _mm512_mask_i32gather_epi32(_mm512_setzero_si512(), here, steps,
                                                         present + part * words + c / 32, 4);
        const float* entry = entries + part * code.n_centroids() + c;
        const std::size_t count = code.n_centroids() < 32 ? code.n_centroids() : 32;
        for (std::size_t b = 0; b < count; ++b) {
          const __mmask16 set =
              _mm512_test_epi32_mask(bits, _mm512_set1_epi32(static_cast<int>(1u << b)));
          least = _mm512_mask_min_ps(least, set, least, _mm512_set1_ps(entry[b]));
        }
      }
      sum = _mm512_add_ps(sum, least);
    }
    _mm512_mask_storeu_ps(bounds + leaf, here, sum);
  }
}

// Lanes are the keys that are ranked.
DELFSEARCH_TARGET void ranks(std::uint32_t* keys, std::size_t n, std::uint32_t* ranks) {
  const __m512i one = _mm512_set1_epi32(1);
  const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  for (std::size_t i = 0; i < n; i += 16) {
    const __m512i own = _mm512_loadu_si512(keys + i);
    __m512i before = _mm512_setzero_si512();
    const std::size_t end = n - i < 16 ? n : i + 16;
    // Those given earlier count where they are equal, too.
    for (std::size_t j = 0; j < i; ++j)
      before = _mm512_mask_add_epi32(
          before, _mm512_cmple_epu32_mask(_mm512_set1_epi32(static_cast<int>(keys[j])), own),
          before, one);
    for (std::size_t j = i; j < end; ++j) {
      const __m512i key = _mm512_set1_epi32(static_cast<int>(keys[j]));
      const __mmask16 later =
          _mm512_cmpgt_epi32_mask(lanes, _mm512_set1_epi32(static_cast<int>(j - i)));
      const auto less = static_cast<__mmask16>(_mm512_cmplt_epu32_mask(key, own) |
                                               _mm512_mask_cmpeq_epi32_mask(later, key, own));
      before = _mm512_mask_add_epi32(before, less, before, one);
    }
    for (std::size_t j = end; j < n; ++j)
      before = _mm512_mask_add_epi32(
          before, _mm512_cmplt_epu32_mask(_mm512_set1_epi32(static_cast<int>(keys[j])), own),
          before, one);
    _mm512_storeu_si512(ranks + i, before);
  }
}

DELFSEARCH_TARGET void range(const float* values, std::size_t n, float* least, float* greatest) {
  __m512 low = _mm512_set1_ps(values[0]), high = low;
  for (std::size_t i = 0; i < n; i += 16) {
    const auto here = static_cast<__mmask16>(n - i < 16 ? (1u << (n - i)) - 1 : 0xffff);
    const __m512 value = _mm512_maskz_loadu_ps(here, values + i);
    low = _mm512_mask_min_ps(low, here, low, value);
    high = _mm512_mask_max_ps(high, here, high, value);
  }
  *least = _mm512_reduce_min_ps(low);
  *greatest = _mm512_reduce_max_ps(high);
}

DELFSEARCH_TARGET std::size_t count_within(const float* values, std::size_t n, float limit) {
  const __m512 limits = _mm512_set1_ps(limit);
  std::size_t count = 0, i = 0;
  for (; i + 16 <= n; i += 16)
    count += static_cast<std::size_t>(
        _mm_popcnt_u32(_mm512_cmp_ps_mask(_mm512_loadu_ps(values + i), limits, _CMP_LE_OQ)));
  for (; i < n; ++i) count += values[i] <= limit;
  return count;
}

DELFSEARCH_TARGET std::size_t keep_within(float* values, std::uint32_t* places, std::size_t n,
                                          float limit) {
  const __m512 limits = _mm512_set1_ps(limit);
  std::size_t kept = 0;
  for (std::size_t i = 0; i < n; i += 16) {
    const auto here = static_cast<__mmask16>(n - i < 16 ? (1u << (n - i)) - 1 : 0xffff);
    const __m512 value = _mm512_maskz_loadu_ps(here, values + i);
    const __m512i place = _mm512_maskz_loadu_epi32(here, places + i);
    const __mmask16 within = _mm512_mask_cmp_ps_mask(here, value, limits, _CMP_LE_OQ);
    _mm512_storeu_ps(values + kept, _mm512_maskz_compress_ps(within, value));
    _mm512_storeu_si512(places + kept, _mm512_maskz_compress_epi32(within, place));
    kept += static_cast<std::size_t>(_mm_popcnt_u32(within));
  }
  return kept;
}

#include "scan_choose.inl"
#include "scan_choose_tables.inl"

}  // namespace

const Kernels& kernels_avx512() {
  static const Kernels table{48,    may_pass, distances,    round_down, leaf_bounds,
                             ranks, range,    count_within, keep_within};
  return table;
}

}  // namespace delfsearch::scan
#endif
