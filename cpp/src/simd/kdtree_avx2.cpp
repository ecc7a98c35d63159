// AVX2 kernels. vpmaddubsw multiplies unsigned codes with signed bytes but saturates at 16 bits, so
// the filter's words are 7-bit and the ranking's 8-bit ones are taken in two halves; exact sums
// widen the codes to 16 bits.
#include "kdtree_kernels.hpp"

#if defined(__x86_64__) || defined(_M_X64)

#include <immintrin.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <vector>

#include "kdtree_select.hpp"

#if defined(__GNUC__) || defined(__clang__)
#define TARGET __attribute__((target("avx2,fma,bmi,popcnt")))
#define TARGET_INLINE TARGET __attribute__((always_inline)) inline
#else
#define TARGET
#define TARGET_INLINE __forceinline
#endif

namespace delfsearch::kdtree {
namespace {

constexpr std::size_t kRows = 16;

TARGET_INLINE __m256i load(const void* p) {
  return _mm256_loadu_si256(static_cast<const __m256i*>(p));
}

TARGET_INLINE __m256i broadcast_word(const std::int8_t* bytes) {
  std::int32_t word;
  std::memcpy(&word, bytes, 4);
  return _mm256_set1_epi32(word);
}

// One block, kQueries queries; words within [-64, 64]. sums[q][half] starts as given.
template <int kQueries>
TARGET_INLINE void add_dot(const std::uint8_t* codes, std::size_t d4,
                           const std::int8_t* const (&words)[kQueries],
                           __m256i (&sums)[kQueries][2]) {
  const __m256i ones = _mm256_set1_epi16(1);
  for (std::size_t j = 0; j < d4; ++j) {
    const __m256i c0 = load(codes + j * 64), c1 = load(codes + j * 64 + 32);
    for (int q = 0; q < kQueries; ++q) {
      const __m256i w = broadcast_word(words[q] + 4 * j);
      const __m256i p0 = _mm256_madd_epi16(_mm256_maddubs_epi16(c0, w), ones);
      const __m256i p1 = _mm256_madd_epi16(_mm256_maddubs_epi16(c1, w), ones);
      sums[q][0] = _mm256_add_epi32(sums[q][0], p0);
      sums[q][1] = _mm256_add_epi32(sums[q][1], p1);
    }
  }
}

template <int kQueries>
TARGET void rank_rows(const std::uint8_t* codes, const float* norms, std::size_t n_blocks,
                      std::size_t d4, const Query* queries, const std::int8_t* halves,
                      float* scores, std::size_t stride) {
  const std::int8_t* first[kQueries];
  const std::int8_t* second[kQueries];
  for (int q = 0; q < kQueries; ++q) {
    first[q] = halves + static_cast<std::size_t>(q) * d4 * 8;
    second[q] = first[q] + d4 * 4;
  }
  for (std::size_t b = 0; b < n_blocks; ++b) {
    __m256i sums[kQueries][2];
    for (int q = 0; q < kQueries; ++q)
      sums[q][0] = sums[q][1] = _mm256_set1_epi32(-queries[q].high_offset);
    add_dot<kQueries>(codes + b * d4 * 64, d4, first, sums);
    add_dot<kQueries>(codes + b * d4 * 64, d4, second, sums);
    for (int q = 0; q < kQueries; ++q) {
      const __m256 scale = _mm256_set1_ps(queries[q].rank_scale);
      for (std::size_t half = 0; half < 2; ++half) {
        const std::size_t row = b * kRows + half * 8;
        const __m256 score = _mm256_sub_ps(_mm256_loadu_ps(norms + row),
                                           _mm256_mul_ps(scale, _mm256_cvtepi32_ps(sums[q][half])));
        _mm256_storeu_ps(scores + static_cast<std::size_t>(q) * stride + row, score);
      }
    }
  }
}

void rank(const std::uint8_t* codes, const float* norms, std::size_t n_blocks, std::size_t d4,
          const Query* queries, std::size_t n_queries, float* scores, std::size_t stride) {
  std::vector<std::int8_t> halves(n_queries * d4 * 8);
  for (std::size_t q = 0; q < n_queries; ++q)
    for (std::size_t i = 0; i < d4 * 4; ++i) {
      const int high = queries[q].high[i];
      const int half = high >= 0 ? high / 2 : -(-high / 2);
      halves[q * d4 * 8 + i] = static_cast<std::int8_t>(half);
      halves[q * d4 * 8 + d4 * 4 + i] = static_cast<std::int8_t>(high - half);
    }
  std::size_t q = 0;
  for (; q + 4 <= n_queries; q += 4)
    rank_rows<4>(codes, norms, n_blocks, d4, queries + q, halves.data() + q * d4 * 8,
                 scores + q * stride, stride);
  for (; q < n_queries; ++q)
    rank_rows<1>(codes, norms, n_blocks, d4, queries + q, halves.data() + q * d4 * 8,
                 scores + q * stride, stride);
}

template <int kQueries>
TARGET_INLINE Survivor* filter_tile(const Group& group, std::size_t d4, const std::uint8_t* records,
                                    std::size_t stride, const std::uint32_t* members,
                                    Survivor* out) {
  const FilterHead* heads[kQueries];
  const std::int8_t* words[kQueries];
  std::uint64_t rows[kQueries] = {};
  for (int q = 0; q < kQueries; ++q) {
    heads[q] = reinterpret_cast<const FilterHead*>(records + members[q] * stride);
    words[q] = reinterpret_cast<const std::int8_t*>(heads[q] + 1);
  }
  for (std::size_t b = 0; b < group.n_blocks; ++b) {
    __m256i sums[kQueries][2];
    for (int q = 0; q < kQueries; ++q)
      sums[q][0] = sums[q][1] = _mm256_set1_epi32(-heads[q]->offset);
    add_dot<kQueries>(group.codes + b * d4 * 64, d4, words, sums);
    for (int q = 0; q < kQueries; ++q) {
      const __m256 scale = _mm256_set1_ps(heads[q]->scale);
      const __m256 limit = _mm256_set1_ps(heads[q]->limit);
      for (std::size_t half = 0; half < 2; ++half) {
        const std::size_t row = b * kRows + half * 8;
        const __m256 p = _mm256_fnmadd_ps(scale, _mm256_cvtepi32_ps(sums[q][half]),
                                          _mm256_loadu_ps(group.norms + row));
        const int mask = _mm256_movemask_ps(_mm256_cmp_ps(p, limit, _CMP_LE_OQ));
        rows[q] |= static_cast<std::uint64_t>(static_cast<unsigned>(mask)) << row;
      }
    }
  }
  for (int q = 0; q < kQueries; ++q) {
    out->rows = rows[q] & group.valid;
    out->query = members[q];
    out += out->rows != 0;
  }
  return out;
}

TARGET std::size_t filter(const Group& group, std::size_t d4, const std::uint8_t* records,
                          std::size_t stride, const std::uint32_t* members, std::size_t n_members,
                          Survivor* out) {
  Survivor* end = out;
  std::size_t q = 0;
  for (; q + 4 <= n_members; q += 4)
    end = filter_tile<4>(group, d4, records, stride, members + q, end);
  for (; q < n_members; ++q) end = filter_tile<1>(group, d4, records, stride, members + q, end);
  return static_cast<std::size_t>(end - out);
}

TARGET void refine(const Group& group, std::size_t d4, std::uint64_t rows, Query& query) {
  const __m256 scale = _mm256_set1_ps(query.scale);
  const __m256 limit = _mm256_set1_ps(query.limit);
  const __m256i offset = _mm256_set1_epi32(query.fine_offset);
  for (std::size_t b = 0; b < group.n_blocks; ++b) {
    const auto wanted = static_cast<unsigned>(rows >> (kRows * b)) & 0xffffu;
    if (wanted == 0) continue;
    const std::uint8_t* codes = group.codes + b * d4 * 64;
    // Quarter r holds rows 4 r .. 4 r + 3, two partial sums each.
    __m256i quarters[4];
    for (auto& quarter : quarters) quarter = _mm256_setzero_si256();
    for (std::size_t j = 0; j < d4; ++j) {
      std::int64_t words;
      std::memcpy(&words, query.fine + 4 * j, 8);
      const __m256i w = _mm256_set1_epi64x(words);
      for (std::size_t r = 0; r < 4; ++r) {
        const __m256i c = _mm256_cvtepu8_epi16(
            _mm_loadu_si128(reinterpret_cast<const __m128i*>(codes + j * 64 + r * 16)));
        quarters[r] = _mm256_add_epi32(quarters[r], _mm256_madd_epi16(c, w));
      }
    }
    for (std::size_t half = 0; half < 2; ++half) {
      const __m256i crossed = _mm256_hadd_epi32(quarters[2 * half], quarters[2 * half + 1]);
      const __m256i sum = _mm256_sub_epi32(_mm256_permute4x64_epi64(crossed, 0xd8), offset);
      const std::size_t row = b * kRows + half * 8;
      const __m256 p = _mm256_sub_ps(_mm256_loadu_ps(group.norms + row),
                                     _mm256_mul_ps(scale, _mm256_cvtepi32_ps(sum)));
      auto kept = static_cast<unsigned>(_mm256_movemask_ps(_mm256_cmp_ps(p, limit, _CMP_LE_OQ)));
      kept &= wanted >> (half * 8);
      float values[8];
      _mm256_storeu_ps(values, p);
      for (; kept != 0; kept &= kept - 1) {
        const auto lane = static_cast<std::size_t>(_tzcnt_u32(kept));
        query.pending[query.count] = values[lane];
        query.pending_row[query.count] = static_cast<std::uint32_t>(group.first_row + row + lane);
        ++query.count;
      }
    }
  }
}

struct Ops {
  TARGET static std::size_t count_at_most(const float* values, std::size_t n, float limit) {
    const __m256 bound = _mm256_set1_ps(limit);
    std::size_t count = 0, i = 0;
    for (; i + 8 <= n; i += 8)
      count += static_cast<std::size_t>(_mm_popcnt_u32(static_cast<unsigned>(
          _mm256_movemask_ps(_mm256_cmp_ps(_mm256_loadu_ps(values + i), bound, _CMP_LE_OQ)))));
    for (; i < n; ++i) count += values[i] <= limit ? 1 : 0;
    return count;
  }

  TARGET static float largest_at_most(const float* values, std::size_t n, float limit) {
    const __m256 bound = _mm256_set1_ps(limit);
    const __m256 none = _mm256_set1_ps(-std::numeric_limits<float>::infinity());
    __m256 largest = none;
    std::size_t i = 0;
    for (; i + 8 <= n; i += 8) {
      const __m256 v = _mm256_loadu_ps(values + i);
      largest =
          _mm256_max_ps(largest, _mm256_blendv_ps(none, v, _mm256_cmp_ps(v, bound, _CMP_LE_OQ)));
    }
    float lanes[8];
    _mm256_storeu_ps(lanes, largest);
    for (const float lane : lanes) lanes[0] = lane > lanes[0] ? lane : lanes[0];
    for (; i < n; ++i)
      if (values[i] <= limit && values[i] > lanes[0]) lanes[0] = values[i];
    return lanes[0];
  }

  static float smallest(const float* values, std::size_t n) {
    float least[4] = {values[0], values[0], values[0], values[0]};
    std::size_t i = 0;
    for (; i + 4 <= n; i += 4)
      for (std::size_t l = 0; l < 4; ++l)
        least[l] = values[i + l] < least[l] ? values[i + l] : least[l];
    for (; i < n; ++i) least[0] = values[i] < least[0] ? values[i] : least[0];
    for (const float value : least) least[0] = value < least[0] ? value : least[0];
    return least[0];
  }
};

// Eight at a time are tested; few pass, so the rest is a loop over the bits.
TARGET std::size_t keep(const float* values, const std::uint32_t* rows, std::size_t n, float limit,
                        float* out_values, std::uint32_t* out_rows) {
  const __m256 bound = _mm256_set1_ps(limit);
  std::size_t kept = 0, i = 0;
  for (; i + 8 <= n; i += 8) {
    auto mask = static_cast<unsigned>(
        _mm256_movemask_ps(_mm256_cmp_ps(_mm256_loadu_ps(values + i), bound, _CMP_LE_OQ)));
    for (; mask != 0; mask &= mask - 1) {
      const std::size_t at = i + static_cast<std::size_t>(_tzcnt_u32(mask));
      out_values[kept] = values[at];
      out_rows[kept++] = rows ? rows[at] : static_cast<std::uint32_t>(at);
    }
  }
  for (; i < n; ++i)
    if (values[i] <= limit) {
      out_values[kept] = values[i];
      out_rows[kept++] = rows ? rows[i] : static_cast<std::uint32_t>(i);
    }
  return kept;
}

float kth_smallest(const float* values, std::size_t n, std::size_t k, std::size_t spare) {
  return kth_smallest_by_counting<Ops>(values, n, k, spare);
}

void sort_keys(std::uint64_t* keys, std::size_t n) { std::sort(keys, keys + n); }

TARGET void nearest(const float* scores, std::size_t stride, const float* bases, std::size_t n,
                    std::int32_t* keys) {
  const __m256i mask = _mm256_set1_epi32(~kNumberMask);
  for (std::size_t row = 0; row < stride; row += 8) {
    __m256i held[kNearest];
    for (auto& h : held) h = _mm256_set1_epi32(std::numeric_limits<std::int32_t>::max());
    for (std::size_t i = 0; i < n; ++i) {
      const __m256 value =
          _mm256_add_ps(_mm256_loadu_ps(scores + i * stride + row), _mm256_set1_ps(bases[i]));
      __m256i key = _mm256_max_epi32(_mm256_castps_si256(value), _mm256_setzero_si256());
      key = _mm256_or_si256(_mm256_and_si256(key, mask), _mm256_set1_epi32(static_cast<int>(i)));
      for (auto& h : held) {
        const __m256i larger = _mm256_max_epi32(h, key);
        h = _mm256_min_epi32(h, key);
        key = larger;
      }
    }
    for (std::size_t c = 0; c < kNearest; ++c)
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(keys + c * stride + row), held[c]);
  }
}

}  // namespace

const Kernels* avx2_kernels() {
  static const Kernels kernels{512, rank, filter, refine, kth_smallest, keep, sort_keys, nearest};
  return &kernels;
}

}  // namespace delfsearch::kdtree

#else

namespace delfsearch::kdtree {
const Kernels* avx2_kernels() { return nullptr; }
}  // namespace delfsearch::kdtree

#endif
