// AVX-512 VNNI kernels: one vpdpbusd does 4 dimensions of 16 rows. Four queries by four blocks at a
// time: 16 sums in registers, so that each code loaded and each query word broadcast is used 4
// times.
#include "kdtree_kernels.hpp"

#if (defined(__x86_64__) || defined(_M_X64))
#define DELFSEARCH_HAVE_AVX512 1
#endif

#ifdef DELFSEARCH_HAVE_AVX512

#if defined(__GNUC__) && !defined(__clang__)
// GCC 12's own header reads a deliberately undefined register and warns about it.
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>

#include <algorithm>
#include <cstring>
#include <limits>

#include "kdtree_select.hpp"

#if defined(__GNUC__) || defined(__clang__)
#define TARGET    \
  __attribute__(( \
      target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi,bmi,bmi2,popcnt")))
#define TARGET_INLINE TARGET __attribute__((always_inline)) inline
#else
#define TARGET
#define TARGET_INLINE __forceinline
#endif

namespace delfsearch::kdtree {
namespace {

constexpr std::size_t kRows = 16;

TARGET_INLINE __m512i broadcast_word(const std::int8_t* bytes) {
  std::int32_t word;
  std::memcpy(&word, bytes, 4);
  return _mm512_set1_epi32(word);
}

// sum + codes . word, four dimensions of 16 rows.
TARGET_INLINE __m512i accumulate(__m512i sum, __m512i codes, __m512i word) {
#if defined(__GNUC__) || defined(__clang__)
  // As an instruction: around the intrinsic GCC copies every sum, and spills some.
  __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(codes), "v"(word));
  return sum;
#else
  return _mm512_dpbusd_epi32(sum, codes, word);
#endif
}

// sums[q][b] = offset[q] + sum over dimensions of words[q] * codes[b]
template <int kQueries, int kBlocks>
TARGET_INLINE void dot(const std::uint8_t* codes, std::size_t d4,
                       const std::int8_t* const (&words)[kQueries],
                       const std::int32_t (&offsets)[kQueries],
                       __m512i (&sums)[kQueries][kBlocks]) {
  for (int q = 0; q < kQueries; ++q)
    for (int b = 0; b < kBlocks; ++b) sums[q][b] = _mm512_set1_epi32(-offsets[q]);
  for (std::size_t j = 0; j < d4; ++j) {
    __m512i c[kBlocks];
    for (int b = 0; b < kBlocks; ++b)
      c[b] = _mm512_loadu_si512(codes + (static_cast<std::size_t>(b) * d4 + j) * 64);
    for (int q = 0; q < kQueries; ++q) {
      const __m512i word = broadcast_word(words[q] + 4 * j);
      for (int b = 0; b < kBlocks; ++b) sums[q][b] = accumulate(sums[q][b], c[b], word);
    }
  }
}

template <int kQueries, int kBlocks>
TARGET void rank_tile(const std::uint8_t* codes, const float* norms, std::size_t d4,
                      const Query* queries, float* scores, std::size_t stride) {
  const std::int8_t* words[kQueries];
  std::int32_t offsets[kQueries];
  for (int q = 0; q < kQueries; ++q) {
    words[q] = queries[q].high;
    offsets[q] = queries[q].high_offset;
  }
  __m512i sums[kQueries][kBlocks];
  dot<kQueries, kBlocks>(codes, d4, words, offsets, sums);
  for (int q = 0; q < kQueries; ++q) {
    const __m512 scale = _mm512_set1_ps(queries[q].rank_scale);
    for (int b = 0; b < kBlocks; ++b) {
      const __m512 norm = _mm512_loadu_ps(norms + static_cast<std::size_t>(b) * kRows);
      const __m512 score =
          _mm512_sub_ps(norm, _mm512_mul_ps(scale, _mm512_cvtepi32_ps(sums[q][b])));
      _mm512_storeu_ps(
          scores + static_cast<std::size_t>(q) * stride + static_cast<std::size_t>(b) * kRows,
          score);
    }
  }
}

template <int kQueries>
TARGET void rank_rows(const std::uint8_t* codes, const float* norms, std::size_t n_blocks,
                      std::size_t d4, const Query* queries, float* scores, std::size_t stride) {
  std::size_t b = 0;
  for (; b + 4 <= n_blocks; b += 4)
    rank_tile<kQueries, 4>(codes + b * d4 * 64, norms + b * kRows, d4, queries, scores + b * kRows,
                           stride);
  for (; b < n_blocks; ++b)
    rank_tile<kQueries, 1>(codes + b * d4 * 64, norms + b * kRows, d4, queries, scores + b * kRows,
                           stride);
}

void rank(const std::uint8_t* codes, const float* norms, std::size_t n_blocks, std::size_t d4,
          const Query* queries, std::size_t n_queries, float* scores, std::size_t stride) {
  std::size_t q = 0;
  for (; q + 4 <= n_queries; q += 4)
    rank_rows<4>(codes, norms, n_blocks, d4, queries + q, scores + q * stride, stride);
  for (; q < n_queries; ++q)
    rank_rows<1>(codes, norms, n_blocks, d4, queries + q, scores + q * stride, stride);
}

template <int kQueries, int kBlocks>
TARGET_INLINE Survivor* filter_tile(const Group& group, std::size_t d4, const std::uint8_t* records,
                                    std::size_t stride, const std::uint32_t* members,
                                    Survivor* out) {
  const FilterHead* heads[kQueries];
  const std::int8_t* words[kQueries];
  std::int32_t offsets[kQueries];
  for (int q = 0; q < kQueries; ++q) {
    heads[q] = reinterpret_cast<const FilterHead*>(records + members[q] * stride);
    words[q] = reinterpret_cast<const std::int8_t*>(heads[q] + 1);
    offsets[q] = heads[q]->offset;
  }
  __m512i sums[kQueries][kBlocks];
  dot<kQueries, kBlocks>(group.codes, d4, words, offsets, sums);
  for (int q = 0; q < kQueries; ++q) {
    const __m512 scale = _mm512_set1_ps(heads[q]->scale);
    const __m512 limit = _mm512_set1_ps(heads[q]->limit);
    std::uint64_t rows = 0;
    for (int b = 0; b < kBlocks; ++b) {
      const __m512 norm = _mm512_loadu_ps(group.norms + static_cast<std::size_t>(b) * kRows);
      const __m512 p = _mm512_fnmadd_ps(scale, _mm512_cvtepi32_ps(sums[q][b]), norm);
      rows |= static_cast<std::uint64_t>(_mm512_cmp_ps_mask(p, limit, _CMP_LE_OQ)) << (16 * b);
    }
    rows &= group.valid;
    out->rows = rows;
    out->query = members[q];
    out += rows != 0;
  }
  return out;
}

template <int kBlocks>
TARGET std::size_t filter_group(const Group& group, std::size_t d4, const std::uint8_t* records,
                                std::size_t stride, const std::uint32_t* members,
                                std::size_t n_members, Survivor* out) {
  Survivor* end = out;
  std::size_t q = 0;
  for (; q + 4 <= n_members; q += 4) {
    // The queries of a leaf are scattered: ask early for those after the next.
    if (q + 12 <= n_members)
      for (std::size_t i = 8; i < 12; ++i)
        _mm_prefetch(reinterpret_cast<const char*>(records + members[q + i] * stride), _MM_HINT_T0);
    end = filter_tile<4, kBlocks>(group, d4, records, stride, members + q, end);
  }
  for (; q < n_members; ++q)
    end = filter_tile<1, kBlocks>(group, d4, records, stride, members + q, end);
  return static_cast<std::size_t>(end - out);
}

std::size_t filter(const Group& group, std::size_t d4, const std::uint8_t* records,
                   std::size_t stride, const std::uint32_t* members, std::size_t n_members,
                   Survivor* out) {
  switch (group.n_blocks) {
    case 1:
      return filter_group<1>(group, d4, records, stride, members, n_members, out);
    case 2:
      return filter_group<2>(group, d4, records, stride, members, n_members, out);
    case 3:
      return filter_group<3>(group, d4, records, stride, members, n_members, out);
    default:
      return filter_group<4>(group, d4, records, stride, members, n_members, out);
  }
}

// Appends the wanted rows of a block that lie within the limit; returns the new count.
TARGET_INLINE std::uint32_t append(const Group& group, std::size_t b, __mmask16 wanted,
                                   __m512i high, __m512i low, const Query& query,
                                   std::uint32_t count) {
  const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  const __m512i sum = _mm512_add_epi32(_mm512_slli_epi32(high, 8), low);
  const __m512 norm = _mm512_loadu_ps(group.norms + b * kRows);
  const __m512 p =
      _mm512_sub_ps(norm, _mm512_mul_ps(_mm512_set1_ps(query.scale), _mm512_cvtepi32_ps(sum)));
  const __mmask16 kept =
      _mm512_mask_cmp_ps_mask(wanted, p, _mm512_set1_ps(query.limit), _CMP_LE_OQ);
  // Compress in the register and store it whole: a compressing store is microcode on Zen 4.
  _mm512_storeu_ps(query.pending + count, _mm512_maskz_compress_ps(kept, p));
  const __m512i place =
      _mm512_add_epi32(lanes, _mm512_set1_epi32(static_cast<int>(group.first_row + b * kRows)));
  _mm512_storeu_si512(query.pending_row + count, _mm512_maskz_compress_epi32(kept, place));
  return count + static_cast<std::uint32_t>(_mm_popcnt_u32(kept));
}

TARGET_INLINE std::size_t first_block(std::uint64_t rows) {
  return static_cast<std::size_t>(_tzcnt_u64(rows)) / kRows;
}

TARGET_INLINE __mmask16 rows_of(std::uint64_t rows, std::size_t block) {
  return static_cast<__mmask16>(rows >> (kRows * block));
}

// Two chains of sums a block: several blocks at once keep the multipliers busy.
TARGET void refine(const Group& group, std::size_t d4, std::uint64_t rows, Query& query) {
  std::uint32_t count = query.count;
  if (rows == ~std::uint64_t{0}) {
    const std::int8_t* const words[2] = {query.high, query.low};
    const std::int32_t offsets[2] = {0, query.fine_offset};
    __m512i sums[2][4];
    dot<2, 4>(group.codes, d4, words, offsets, sums);
    for (std::size_t b = 0; b < 4; ++b)
      count = append(group, b, 0xffff, sums[0][b], sums[1][b], query, count);
    query.count = count;
    return;
  }
  while (rows != 0) {
    const std::size_t b0 = first_block(rows);
    const __mmask16 wanted0 = rows_of(rows, b0);
    rows &= ~(std::uint64_t{0xffff} << (kRows * b0));
    const std::size_t b1 = rows != 0 ? first_block(rows) : b0;
    const __mmask16 wanted1 = rows_of(rows, b1);
    rows &= ~(std::uint64_t{0xffff} << (kRows * b1));
    const std::uint8_t* codes0 = group.codes + b0 * d4 * 64;
    const std::uint8_t* codes1 = group.codes + b1 * d4 * 64;
    __m512i high0 = _mm512_setzero_si512(), high1 = high0;
    __m512i low0 = _mm512_set1_epi32(-query.fine_offset), low1 = low0;
    for (std::size_t j = 0; j < d4; ++j) {
      const __m512i c0 = _mm512_loadu_si512(codes0 + j * 64);
      const __m512i c1 = _mm512_loadu_si512(codes1 + j * 64);
      const __m512i high = broadcast_word(query.high + 4 * j);
      const __m512i low = broadcast_word(query.low + 4 * j);
      high0 = accumulate(high0, c0, high);
      low0 = accumulate(low0, c0, low);
      high1 = accumulate(high1, c1, high);
      low1 = accumulate(low1, c1, low);
    }
    count = append(group, b0, wanted0, high0, low0, query, count);
    if (wanted1 != 0) count = append(group, b1, wanted1, high1, low1, query, count);
  }
  query.count = count;
}

// Loads up to 16 values; those past the end are +inf.
TARGET_INLINE __m512 load_some(const float* values, std::size_t n) {
  const __m512 past = _mm512_set1_ps(std::numeric_limits<float>::infinity());
  if (n >= kRows) return _mm512_loadu_ps(values);
  return _mm512_mask_loadu_ps(past, static_cast<__mmask16>((1u << n) - 1), values);
}

struct Ops {
  TARGET static std::size_t count_at_most(const float* values, std::size_t n, float limit) {
    const __m512 bound = _mm512_set1_ps(limit);
    std::size_t count = 0;
    for (std::size_t i = 0; i < n; i += kRows)
      count += static_cast<std::size_t>(
          _mm_popcnt_u32(_mm512_cmp_ps_mask(load_some(values + i, n - i), bound, _CMP_LE_OQ)));
    return count;
  }

  TARGET static float largest_at_most(const float* values, std::size_t n, float limit) {
    const __m512 bound = _mm512_set1_ps(limit);
    __m512 largest = _mm512_set1_ps(-std::numeric_limits<float>::infinity());
    for (std::size_t i = 0; i < n; i += kRows) {
      // Not those past the end, which an infinite limit would let in.
      const auto in = static_cast<__mmask16>(n - i >= kRows ? 0xffffu : (1u << (n - i)) - 1);
      const __m512 v = load_some(values + i, n - i);
      largest = _mm512_mask_max_ps(largest, _mm512_mask_cmp_ps_mask(in, v, bound, _CMP_LE_OQ),
                                   largest, v);
    }
    return _mm512_reduce_max_ps(largest);
  }

  TARGET static float smallest(const float* values, std::size_t n) {
    __m512 least = load_some(values, n);
    for (std::size_t i = kRows; i < n; i += kRows)
      least = _mm512_min_ps(least, load_some(values + i, n - i));
    return _mm512_reduce_min_ps(least);
  }
};

TARGET std::size_t keep(const float* values, const std::uint32_t* rows, std::size_t n, float limit,
                        float* out_values, std::uint32_t* out_rows) {
  const __m512 bound = _mm512_set1_ps(limit);
  __m512i place = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  std::size_t kept = 0;
  for (std::size_t i = 0; i < n; i += 16) {
    const auto in = static_cast<__mmask16>(n - i >= 16 ? 0xffffu : (1u << (n - i)) - 1);
    const __m512 v = _mm512_maskz_loadu_ps(in, values + i);
    const __m512i r = rows ? _mm512_maskz_loadu_epi32(in, rows + i) : place;
    const __mmask16 m = _mm512_mask_cmp_ps_mask(in, v, bound, _CMP_LE_OQ);
    _mm512_storeu_ps(out_values + kept, _mm512_maskz_compress_ps(m, v));
    _mm512_storeu_si512(out_rows + kept, _mm512_maskz_compress_epi32(m, r));
    kept += static_cast<std::size_t>(_mm_popcnt_u32(m));
    place = _mm512_add_epi32(place, _mm512_set1_epi32(16));
  }
  return kept;
}

float kth_smallest(const float* values, std::size_t n, std::size_t k, std::size_t spare) {
  return kth_smallest_by_counting<Ops>(values, n, k, spare);
}

// Each key goes to the place that is the number of smaller ones: no branch to mispredict.
TARGET void sort_keys(std::uint64_t* keys, std::size_t n) {
  constexpr std::size_t kLanes = 8, kMost = 128;
  if (n > kMost) {
    std::sort(keys, keys + n);
    return;
  }
  alignas(64) std::uint64_t padded[kMost];
  const std::size_t n_vectors = (n + kLanes - 1) / kLanes;
  std::copy(keys, keys + n, padded);
  std::fill(padded + n, padded + n_vectors * kLanes, ~std::uint64_t{0});
  const __m512i one = _mm512_set1_epi64(1);
  for (std::size_t v = 0; v < n_vectors; ++v) {
    const __m512i mine = _mm512_load_si512(padded + v * kLanes);
    __m512i places[2] = {_mm512_setzero_si512(), _mm512_setzero_si512()};
    for (std::size_t i = 0; i < n; i += 2)
      for (std::size_t l = 0; l < 2; ++l) {
        // Past the end lies at most one padding key, which no key is greater than.
        const __m512i other = _mm512_set1_epi64(
            static_cast<long long>(i + l < n ? padded[i + l] : ~std::uint64_t{0}));
        places[l] =
            _mm512_mask_add_epi64(places[l], _mm512_cmpgt_epu64_mask(mine, other), places[l], one);
      }
    alignas(64) std::uint64_t place[kLanes];
    _mm512_store_si512(place, _mm512_add_epi64(places[0], places[1]));
    for (std::size_t l = 0; l < kLanes && v * kLanes + l < n; ++l)
      keys[place[l]] = padded[v * kLanes + l];
  }
}

TARGET void nearest(const float* scores, std::size_t stride, const float* bases, std::size_t n,
                    std::int32_t* keys) {
  const __m512i mask = _mm512_set1_epi32(~kNumberMask);
  for (std::size_t row = 0; row < stride; row += kRows) {
    __m512i held[kNearest];
    for (auto& h : held) h = _mm512_set1_epi32(std::numeric_limits<std::int32_t>::max());
    for (std::size_t i = 0; i < n; ++i) {
      const __m512 value =
          _mm512_add_ps(_mm512_loadu_ps(scores + i * stride + row), _mm512_set1_ps(bases[i]));
      __m512i key = _mm512_max_epi32(_mm512_castps_si512(value), _mm512_setzero_si512());
      key = _mm512_or_si512(_mm512_and_si512(key, mask), _mm512_set1_epi32(static_cast<int>(i)));
      for (auto& h : held) {
        const __m512i larger = _mm512_max_epi32(h, key);
        h = _mm512_min_epi32(h, key);
        key = larger;
      }
    }
    for (std::size_t c = 0; c < kNearest; ++c)
      _mm512_storeu_si512(keys + c * stride + row, held[c]);
  }
}

}  // namespace

const Kernels* avx512_kernels() {
  static const Kernels kernels{256, rank, filter, refine, kth_smallest, keep, sort_keys, nearest};
  return &kernels;
}

}  // namespace delfsearch::kdtree

#else

namespace delfsearch::kdtree {
const Kernels* avx512_kernels() { return nullptr; }
}  // namespace delfsearch::kdtree

#endif
