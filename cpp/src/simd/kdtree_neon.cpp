// NEON kernels with the dot product of Armv8.2: one sdot does 4 dimensions of 4 rows. Codes become
// signed by flipping their top bit, so that sums come out as sum word (c - 128) by themselves.
#include "kdtree_kernels.hpp"

#if defined(__aarch64__) && (defined(__GNUC__) || defined(__clang__))

#include <arm_neon.h>

#include <algorithm>
#include <cstring>
#include <limits>

#include "kdtree_select.hpp"

#if defined(__linux__)
#include <sys/auxv.h>
#endif

// Clang names the feature alone, GCC the architecture with it. Where the baseline has it (Apple)
// nothing is needed.
#if defined(__ARM_FEATURE_DOTPROD)
#define TARGET
#elif defined(__clang__)
#define TARGET __attribute__((target("dotprod")))
#else
#define TARGET __attribute__((target("arch=armv8.2-a+dotprod")))
#endif
#define TARGET_INLINE TARGET __attribute__((always_inline)) inline

namespace delfsearch::kdtree {
namespace {

constexpr std::size_t kRows = 16;
constexpr std::size_t kLanes = 4;
constexpr std::size_t kParts = kRows / kLanes;  // vectors of sums in a block

TARGET_INLINE int8x16_t signed_codes(const std::uint8_t* codes) {
  return vreinterpretq_s8_u8(veorq_u8(vld1q_u8(codes), vdupq_n_u8(0x80)));
}

TARGET_INLINE int8x16_t broadcast_word(const std::int8_t* bytes) {
  std::int32_t word;
  std::memcpy(&word, bytes, 4);
  return vreinterpretq_s8_s32(vdupq_n_s32(word));
}

// sums[q][part] = sum of words[q] . (codes - 128), one block.
template <int kQueries>
TARGET_INLINE void dot(const std::uint8_t* codes, std::size_t d4,
                       const std::int8_t* const (&words)[kQueries],
                       int32x4_t (&sums)[kQueries][kParts]) {
  for (int q = 0; q < kQueries; ++q)
    for (std::size_t p = 0; p < kParts; ++p) sums[q][p] = vdupq_n_s32(0);
  for (std::size_t j = 0; j < d4; ++j) {
    int8x16_t c[kParts];
    for (std::size_t p = 0; p < kParts; ++p) c[p] = signed_codes(codes + j * 64 + p * 16);
    for (int q = 0; q < kQueries; ++q) {
      const int8x16_t w = broadcast_word(words[q] + 4 * j);
      for (std::size_t p = 0; p < kParts; ++p) sums[q][p] = vdotq_s32(sums[q][p], c[p], w);
    }
  }
}

template <int kQueries>
TARGET void rank_rows(const std::uint8_t* codes, const float* norms, std::size_t n_blocks,
                      std::size_t d4, const Query* queries, float* scores, std::size_t stride) {
  const std::int8_t* words[kQueries];
  for (int q = 0; q < kQueries; ++q) words[q] = queries[q].high;
  for (std::size_t b = 0; b < n_blocks; ++b) {
    int32x4_t sums[kQueries][kParts];
    dot<kQueries>(codes + b * d4 * 64, d4, words, sums);
    for (int q = 0; q < kQueries; ++q) {
      const float32x4_t scale = vdupq_n_f32(queries[q].rank_scale);
      for (std::size_t p = 0; p < kParts; ++p) {
        const std::size_t row = b * kRows + p * kLanes;
        const float32x4_t score =
            vsubq_f32(vld1q_f32(norms + row), vmulq_f32(scale, vcvtq_f32_s32(sums[q][p])));
        vst1q_f32(scores + static_cast<std::size_t>(q) * stride + row, score);
      }
    }
  }
}

void rank(const std::uint8_t* codes, const float* norms, std::size_t n_blocks, std::size_t d4,
          const Query* queries, std::size_t n_queries, float* scores, std::size_t stride) {
  std::size_t q = 0;
  for (; q + 4 <= n_queries; q += 4)
    rank_rows<4>(codes, norms, n_blocks, d4, queries + q, scores + q * stride, stride);
  for (; q < n_queries; ++q)
    rank_rows<1>(codes, norms, n_blocks, d4, queries + q, scores + q * stride, stride);
}

// One bit per row of a block from four vectors of all ones or zeros.
TARGET_INLINE std::uint32_t bits_of(const uint32x4_t (&in)[kParts]) {
  const uint16x8_t low = vcombine_u16(vmovn_u32(in[0]), vmovn_u32(in[1]));
  const uint16x8_t high = vcombine_u16(vmovn_u32(in[2]), vmovn_u32(in[3]));
  alignas(8) static const std::uint8_t kBits[8] = {1, 2, 4, 8, 16, 32, 64, 128};
  const uint8x8_t bits = vld1_u8(kBits);
  return static_cast<std::uint32_t>(vaddv_u8(vand_u8(vmovn_u16(low), bits))) |
         static_cast<std::uint32_t>(vaddv_u8(vand_u8(vmovn_u16(high), bits))) << 8;
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
    int32x4_t sums[kQueries][kParts];
    dot<kQueries>(group.codes + b * d4 * 64, d4, words, sums);
    for (int q = 0; q < kQueries; ++q) {
      const float32x4_t scale = vdupq_n_f32(heads[q]->scale);
      const float32x4_t limit = vdupq_n_f32(heads[q]->limit);
      uint32x4_t in[kParts];
      for (std::size_t p = 0; p < kParts; ++p) {
        const float32x4_t norm = vld1q_f32(group.norms + b * kRows + p * kLanes);
        in[p] = vcleq_f32(vfmsq_f32(norm, scale, vcvtq_f32_s32(sums[q][p])), limit);
      }
      rows[q] |= static_cast<std::uint64_t>(bits_of(in)) << (kRows * b);
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
  const float32x4_t scale = vdupq_n_f32(query.scale);
  const float32x4_t limit = vdupq_n_f32(query.limit);
  const std::int8_t* const words[2] = {query.high, query.low};
  for (std::size_t b = 0; b < group.n_blocks; ++b) {
    const auto wanted = static_cast<std::uint32_t>(rows >> (kRows * b)) & 0xffffu;
    if (wanted == 0) continue;
    int32x4_t sums[2][kParts];
    dot<2>(group.codes + b * d4 * 64, d4, words, sums);
    uint32x4_t in[kParts];
    float values[kRows];
    for (std::size_t p = 0; p < kParts; ++p) {
      const int32x4_t sum = vaddq_s32(vshlq_n_s32(sums[0][p], 8), sums[1][p]);
      const float32x4_t norm = vld1q_f32(group.norms + b * kRows + p * kLanes);
      const float32x4_t value = vsubq_f32(norm, vmulq_f32(scale, vcvtq_f32_s32(sum)));
      in[p] = vcleq_f32(value, limit);
      vst1q_f32(values + p * kLanes, value);
    }
    for (std::uint32_t kept = bits_of(in) & wanted; kept != 0; kept &= kept - 1) {
      const auto lane = static_cast<std::size_t>(__builtin_ctz(kept));
      query.pending[query.count] = values[lane];
      query.pending_row[query.count] =
          static_cast<std::uint32_t>(group.first_row + b * kRows + lane);
      ++query.count;
    }
  }
}

struct Ops {
  static std::size_t count_at_most(const float* values, std::size_t n, float limit) {
    const float32x4_t bound = vdupq_n_f32(limit);
    uint32x4_t counts = vdupq_n_u32(0);
    std::size_t i = 0;
    for (; i + kLanes <= n; i += kLanes)
      counts = vsubq_u32(counts, vcleq_f32(vld1q_f32(values + i), bound));
    std::size_t count = vaddvq_u32(counts);
    for (; i < n; ++i) count += values[i] <= limit ? 1 : 0;
    return count;
  }

  static float largest_at_most(const float* values, std::size_t n, float limit) {
    const float32x4_t bound = vdupq_n_f32(limit);
    const float32x4_t none = vdupq_n_f32(-std::numeric_limits<float>::infinity());
    float32x4_t largest = none;
    std::size_t i = 0;
    for (; i + kLanes <= n; i += kLanes) {
      const float32x4_t v = vld1q_f32(values + i);
      largest = vmaxq_f32(largest, vbslq_f32(vcleq_f32(v, bound), v, none));
    }
    float result = vmaxvq_f32(largest);
    for (; i < n; ++i)
      if (values[i] <= limit && values[i] > result) result = values[i];
    return result;
  }

  static float smallest(const float* values, std::size_t n) {
    float32x4_t least = vdupq_n_f32(values[0]);
    std::size_t i = 0;
    for (; i + kLanes <= n; i += kLanes) least = vminq_f32(least, vld1q_f32(values + i));
    float result = vminvq_f32(least);
    for (; i < n; ++i) result = values[i] < result ? values[i] : result;
    return result;
  }
};

float kth_smallest(const float* values, std::size_t n, std::size_t k, std::size_t spare) {
  return kth_smallest_by_counting<Ops>(values, n, k, spare);
}

// Four at a time are tested; few pass.
std::size_t keep(const float* values, const std::uint32_t* rows, std::size_t n, float limit,
                 float* out_values, std::uint32_t* out_rows) {
  const float32x4_t bound = vdupq_n_f32(limit);
  std::size_t kept = 0;
  for (std::size_t i = 0; i < n; i += kLanes) {
    if (i + kLanes <= n && vmaxvq_u32(vcleq_f32(vld1q_f32(values + i), bound)) == 0) continue;
    for (std::size_t at = i; at < std::min(i + kLanes, n); ++at)
      if (values[at] <= limit) {
        out_values[kept] = values[at];
        out_rows[kept++] = rows ? rows[at] : static_cast<std::uint32_t>(at);
      }
  }
  return kept;
}

void sort_keys(std::uint64_t* keys, std::size_t n) { std::sort(keys, keys + n); }

void nearest(const float* scores, std::size_t stride, const float* bases, std::size_t n,
             std::int32_t* keys) {
  const int32x4_t mask = vdupq_n_s32(~kNumberMask);
  for (std::size_t row = 0; row < stride; row += kLanes) {
    int32x4_t held[kNearest];
    for (auto& h : held) h = vdupq_n_s32(std::numeric_limits<std::int32_t>::max());
    for (std::size_t i = 0; i < n; ++i) {
      const float32x4_t value =
          vaddq_f32(vld1q_f32(scores + i * stride + row), vdupq_n_f32(bases[i]));
      int32x4_t key = vmaxq_s32(vreinterpretq_s32_f32(value), vdupq_n_s32(0));
      key = vorrq_s32(vandq_s32(key, mask), vdupq_n_s32(static_cast<std::int32_t>(i)));
      for (auto& h : held) {
        const int32x4_t larger = vmaxq_s32(h, key);
        h = vminq_s32(h, key);
        key = larger;
      }
    }
    for (std::size_t c = 0; c < kNearest; ++c) vst1q_s32(keys + c * stride + row, held[c]);
  }
}

bool has_dot_product() {
#if defined(__ARM_FEATURE_DOTPROD)
  return true;
#elif defined(__linux__)
  constexpr unsigned long kAsimdDp = 1ul << 20;  // HWCAP_ASIMDDP
  return (getauxval(AT_HWCAP) & kAsimdDp) != 0;
#else
  return false;
#endif
}

}  // namespace

const Kernels* neon_kernels() {
  static const Kernels kernels{256, rank, filter, refine, kth_smallest, keep, sort_keys, nearest};
  return has_dot_product() ? &kernels : nullptr;
}

}  // namespace delfsearch::kdtree

#else

namespace delfsearch::kdtree {
const Kernels* neon_kernels() { return nullptr; }
}  // namespace delfsearch::kdtree

#endif
