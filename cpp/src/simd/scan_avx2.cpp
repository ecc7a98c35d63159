// AVX2: pshufb looks up 16 entries for 32 codes; the bits above the lower four choose among the
// results.
#include "scan_kernels.hpp"

#ifdef DELFSEARCH_X86
#include <immintrin.h>

#include <cstring>
#include <limits>

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
DELFSEARCH_TARGET void may_pass_of(std::size_t n_parts, const std::uint8_t* blocks,
                                   std::size_t n_blocks, const std::uint8_t* next,
                                   const ByteTable* tables, Passed* const* out,
                                   std::size_t* counts) {
  constexpr std::size_t kPartBytes = 32 + 8 * (kBits - 4);
  constexpr std::size_t kEntries = std::size_t{1} << kBits;
  for (int q = 0; q < kTables; ++q) counts[q] = 0;
  for (std::size_t b = 0; b < n_blocks; ++b) {
    const std::uint8_t* part = blocks + b * n_parts * kPartBytes;
    ask_for_share(next, b, n_blocks, n_parts * kPartBytes);
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
      std::uint64_t codes = 0;
      for (int half = 0; half < 2; ++half) {
        const __m256i least = _mm256_min_epu8(sums[q][half], limit);
        const int mask = _mm256_movemask_epi8(_mm256_cmpeq_epi8(least, sums[q][half]));
        codes |= static_cast<std::uint64_t>(static_cast<unsigned>(mask)) << 32 * half;
      }
      out[q][counts[q]] = {codes, static_cast<std::uint32_t>(b)};
      counts[q] += codes != 0;
    }
  }
}

// Entries of 8 codes whose numbers begin at bit kShift of each lane.
template <int kBits, int kShift>
DELFSEARCH_INLINE __m256 entries_at(const float* entries, __m256i lanes) {
  const __m256i at = _mm256_srli_epi32(lanes, kShift);
  if constexpr (kBits > 5) {
    return _mm256_i32gather_ps(entries, _mm256_and_si256(at, _mm256_set1_epi32(255)), 4);
  } else {
    // A permutation minds three bits; the others choose by the sign bit.
    const __m256 third = _mm256_castsi256_ps(_mm256_slli_epi32(lanes, 28 - kShift));
    const __m256 low =
        _mm256_blendv_ps(_mm256_permutevar8x32_ps(_mm256_loadu_ps(entries), at),
                         _mm256_permutevar8x32_ps(_mm256_loadu_ps(entries + 8), at), third);
    if constexpr (kBits == 4) return low;
    const __m256 high =
        _mm256_blendv_ps(_mm256_permutevar8x32_ps(_mm256_loadu_ps(entries + 16), at),
                         _mm256_permutevar8x32_ps(_mm256_loadu_ps(entries + 24), at), third);
    const __m256 fourth = _mm256_castsi256_ps(_mm256_slli_epi32(lanes, 27 - kShift));
    return _mm256_blendv_ps(low, high, fourth);
  }
}

// Moves the lanes of a mask to the front.
DELFSEARCH_INLINE __m256i front(unsigned mask) {
  const std::uint64_t bytes = _pdep_u64(mask, 0x0101010101010101ULL) * 255;
  const std::uint64_t lanes = _pext_u64(0x0706050403020100ULL, bytes);
  return _mm256_cvtepu8_epi32(_mm_cvtsi64_si128(static_cast<long long>(lanes)));
}

#include "scan_single.inl"

// So many codes of a block cost less one by one.
constexpr int kFew = 12;

template <int kBits>
DELFSEARCH_TARGET std::size_t distances_of(std::size_t n_parts, const std::uint8_t* blocks,
                                           const Passed* which, std::size_t n, const float* entries,
                                           float limit, std::uint32_t first_place, float* values,
                                           std::uint32_t* places) {
  constexpr std::size_t kPartBytes = 32 + 8 * (kBits - 4);
  const __m256i fourth = _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28);
  const __m256 limits = _mm256_set1_ps(limit);
  std::size_t found = 0;
  for (std::size_t i = 0; i < n; ++i) {
    const std::uint32_t first =
        first_place + which[i].block * static_cast<std::uint32_t>(kCodeBlock);
    const std::uint8_t* const block = blocks + which[i].block * n_parts * kPartBytes;
    if (_mm_popcnt_u64(which[i].codes) <= kFew) {
      for (std::uint64_t codes = which[i].codes; codes != 0; codes &= codes - 1) {
        const auto place = static_cast<std::uint32_t>(_tzcnt_u64(codes));
        values[found] = distance_of<kBits>(n_parts, block, entries, place);
        places[found] = first + place;
        found += values[found] <= limit;
      }
      continue;
    }
    for (int half = 0; half < 2; ++half) {
      const auto wanted = static_cast<std::uint32_t>(which[i].codes >> 32 * half);
      if (wanted == 0) continue;
      const std::uint8_t* part = block;
      const float* table = entries;
      __m256 sums[4];
      for (int j = 0; j < 4; ++j) sums[j] = _mm256_setzero_ps();
      for (std::size_t p = 0; p < n_parts;
           ++p, part += kPartBytes, table += std::size_t{1} << kBits) {
        const Numbers<kBits> unpacked = unpack<kBits>(part, half);
        __m256i numbers = unpacked.low;
        for (int bit = 4; bit < kBits; ++bit)
          numbers = _mm256_or_si256(
              numbers, _mm256_and_si256(unpacked.set[bit - 4],
                                        _mm256_set1_epi8(static_cast<char>(1 << bit))));
        // Byte j of each lane: codes j, j + 4, ...
        sums[0] = _mm256_add_ps(sums[0], entries_at<kBits, 0>(table, numbers));
        sums[1] = _mm256_add_ps(sums[1], entries_at<kBits, 8>(table, numbers));
        sums[2] = _mm256_add_ps(sums[2], entries_at<kBits, 16>(table, numbers));
        sums[3] = _mm256_add_ps(sums[3], entries_at<kBits, 24>(table, numbers));
      }
      for (int j = 0; j < 4; ++j) {
        const int mask = _mm256_movemask_ps(_mm256_cmp_ps(sums[j], limits, _CMP_LE_OQ));
        const unsigned within = static_cast<unsigned>(mask) & _pext_u32(wanted >> j, 0x11111111u);
        if (within == 0) continue;
        const __m256i order = front(within);
        const __m256i at =
            _mm256_add_epi32(fourth, _mm256_set1_epi32(static_cast<int>(first) + 32 * half + j));
        _mm256_storeu_ps(values + found, _mm256_permutevar8x32_ps(sums[j], order));
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(places + found),
                            _mm256_permutevar8x32_epi32(at, order));
        found += static_cast<std::size_t>(_mm_popcnt_u32(within));
      }
    }
  }
  return found;
}

DELFSEARCH_TARGET void round_down(const ProductCode& code, const float* entries, const float* least,
                                  float scale, std::uint8_t* bytes) {
  const __m256 scales = _mm256_set1_ps(scale), most = _mm256_set1_ps(255.0f);
  for (std::size_t part = 0; part < code.n_parts; ++part) {
    const __m256 lowest = _mm256_set1_ps(least[part]);
    for (std::size_t c = 0; c < code.n_centroids(); c += 16, entries += 16, bytes += 16) {
      __m256i whole[2];
      for (int v = 0; v < 2; ++v) {
        const __m256 value =
            _mm256_mul_ps(_mm256_sub_ps(_mm256_loadu_ps(entries + 8 * v), lowest), scales);
        whole[v] = _mm256_cvttps_epi32(_mm256_min_ps(value, most));
      }
      const __m256i words = _mm256_permute4x64_epi64(_mm256_packus_epi32(whole[0], whole[1]), 0xd8);
      _mm_storeu_si128(
          reinterpret_cast<__m128i*>(bytes),
          _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1)));
    }
  }
}

// Lanes are leaves.
DELFSEARCH_TARGET void leaf_bounds(const ProductCode& code, const std::uint32_t* present,
                                   std::size_t n_leaves, const float* entries, float* bounds) {
  const std::size_t words = (code.n_centroids() + 31) / 32, stride = code.n_parts * words;
  const std::size_t count = code.n_centroids() < 32 ? code.n_centroids() : 32;
  const __m256 infinite = _mm256_set1_ps(std::numeric_limits<float>::infinity());
  for (std::size_t leaf = 0; leaf < n_leaves; leaf += 8, present += 8 * stride) {
    const std::size_t here = n_leaves - leaf < 8 ? n_leaves - leaf : 8;
    __m256 sum = _mm256_setzero_ps();
    for (std::size_t part = 0; part < code.n_parts; ++part) {
      __m256 least = infinite;
      for (std::size_t c = 0; c < code.n_centroids(); c += 32) {
        alignas(32) std::uint32_t word[8] = {};
        for (std::size_t l = 0; l < here; ++l)
          word[l] = present[l * stride + part * words + c / 32];
        const __m256i bits = _mm256_load_si256(reinterpret_cast<const __m256i*>(word));
        const float* entry = entries + part * code.n_centroids() + c;
        for (std::size_t b = 0; b < count; ++b) {
          const __m256i one = _mm256_set1_epi32(static_cast<int>(1u << b));
          const __m256i absent =
              _mm256_cmpeq_epi32(_mm256_and_si256(bits, one), _mm256_setzero_si256());
          least = _mm256_min_ps(least, _mm256_blendv_ps(_mm256_set1_ps(entry[b]), infinite,
                                                        _mm256_castsi256_ps(absent)));
        }
      }
      sum = _mm256_add_ps(sum, least);
    }
    alignas(32) float out[8];
    _mm256_store_ps(out, sum);
    std::memcpy(bounds + leaf, out, here * sizeof(float));
  }
}

// Lanes are the keys that are ranked.
DELFSEARCH_TARGET void ranks(std::uint32_t* keys, std::size_t n, std::uint32_t* ranks) {
  const __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  for (std::size_t i = 0; i < n; i += 8) {
    const __m256i own = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(keys + i));
    // Those given earlier count where they are equal, too: where own + 1 is greater.
    const __m256i next = _mm256_add_epi32(own, _mm256_set1_epi32(1));
    __m256i before = _mm256_setzero_si256();
    const std::size_t end = n - i < 8 ? n : i + 8;
    std::size_t j = 0;
    for (; j < i; ++j)
      before = _mm256_sub_epi32(
          before, _mm256_cmpgt_epi32(next, _mm256_set1_epi32(static_cast<int>(keys[j]))));
    for (; j < end; ++j) {
      const __m256i later = _mm256_cmpgt_epi32(lanes, _mm256_set1_epi32(static_cast<int>(j - i)));
      const __m256i than = _mm256_sub_epi32(own, later);  // own + 1 in later lanes
      before = _mm256_sub_epi32(
          before, _mm256_cmpgt_epi32(than, _mm256_set1_epi32(static_cast<int>(keys[j]))));
    }
    for (; j < n; ++j)
      before = _mm256_sub_epi32(
          before, _mm256_cmpgt_epi32(own, _mm256_set1_epi32(static_cast<int>(keys[j]))));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(ranks + i), before);
  }
}

DELFSEARCH_TARGET void range(const float* values, std::size_t n, float* least, float* greatest) {
  __m256 low = _mm256_set1_ps(values[0]), high = low;
  std::size_t i = 0;
  for (; i + 8 <= n; i += 8) {
    low = _mm256_min_ps(low, _mm256_loadu_ps(values + i));
    high = _mm256_max_ps(high, _mm256_loadu_ps(values + i));
  }
  alignas(32) float lows[8], highs[8];
  _mm256_store_ps(lows, low);
  _mm256_store_ps(highs, high);
  *least = lows[0];
  *greatest = highs[0];
  for (int j = 1; j < 8; ++j) {
    *least = lows[j] < *least ? lows[j] : *least;
    *greatest = highs[j] > *greatest ? highs[j] : *greatest;
  }
  for (; i < n; ++i) {
    *least = values[i] < *least ? values[i] : *least;
    *greatest = values[i] > *greatest ? values[i] : *greatest;
  }
}

DELFSEARCH_TARGET std::size_t count_within(const float* values, std::size_t n, float limit) {
  const __m256 limits = _mm256_set1_ps(limit);
  std::size_t count = 0, i = 0;
  for (; i + 8 <= n; i += 8) {
    const __m256 within = _mm256_cmp_ps(_mm256_loadu_ps(values + i), limits, _CMP_LE_OQ);
    count +=
        static_cast<std::size_t>(_mm_popcnt_u32(static_cast<unsigned>(_mm256_movemask_ps(within))));
  }
  for (; i < n; ++i) count += values[i] <= limit;
  return count;
}

DELFSEARCH_TARGET std::size_t keep_within(float* values, std::uint32_t* places, std::size_t n,
                                          float limit) {
  const __m256 limits = _mm256_set1_ps(limit);
  std::size_t kept = 0;
  for (std::size_t i = 0; i < n; i += 8) {
    const __m256 value = _mm256_loadu_ps(values + i);
    const __m256i place = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(places + i));
    unsigned within =
        static_cast<unsigned>(_mm256_movemask_ps(_mm256_cmp_ps(value, limits, _CMP_LE_OQ)));
    if (n - i < 8) within &= (1u << (n - i)) - 1;
    const __m256i order = front(within);
    _mm256_storeu_ps(values + kept, _mm256_permutevar8x32_ps(value, order));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(places + kept),
                        _mm256_permutevar8x32_epi32(place, order));
    kept += static_cast<std::size_t>(_mm_popcnt_u32(within));
  }
  return kept;
}

#include "scan_choose.inl"
#include "scan_choose_tables.inl"

}  // namespace

const Kernels& kernels_avx2() {
  static const Kernels table{0,     may_pass, distances,    round_down, leaf_bounds,
                             ranks, range,    count_within, keep_within};
  return table;
}

}  // namespace delfsearch::scan
#endif
