// AMX tiles beside the AVX-512 kernels: one tdpbsud multiplies 16 queries with a block of 16 rows,
// whose layout is by design that of a tile. Only rank and filter are here: what they leave is
// little.
#include "kdtree_kernels.hpp"

#if defined(__linux__) && defined(__x86_64__) && \
    ((defined(__clang__) && __clang_major__ >= 12) || (!defined(__clang__) && __GNUC__ >= 11))

#if !defined(__clang__)
// GCC 12's own header reads a deliberately undefined register and warns about it.
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>

#include <cstring>

#define TARGET __attribute__((target("amx-tile,amx-int8,avx512f,avx512bw,avx512vl,avx512dq")))
#define TARGET_INLINE TARGET __attribute__((always_inline)) inline

namespace delfsearch::kdtree {
namespace {

constexpr std::size_t kRows = 16;
constexpr std::size_t kTileGroups = 16;  // groups of 4 dimensions in a full tile
constexpr std::size_t kMaxGroups = 256;  // 1024 dimensions
constexpr std::size_t kWorthATile = 3;   // fewer queries than this are left to vectors
constexpr std::size_t kBlocks = 4;

// The products of 16 queries with 4 blocks: products[b][q][row].
struct alignas(64) Products {
  std::int32_t of[kBlocks][kRows][kRows];
};

struct alignas(64) Words {
  std::int8_t of[kRows * kMaxGroups * 4];
};

struct alignas(64) TileConfig {
  std::uint8_t palette = 1;
  std::uint8_t start_row = 0;
  std::uint8_t reserved[14] = {};
  std::uint16_t row_bytes[16] = {};
  std::uint8_t rows[16] = {};
};

// A tile must be full or the only one: reading past a block's end is not allowed.
bool fits_tiles(std::size_t d4) {
  return d4 <= kTileGroups || (d4 % kTileGroups == 0 && d4 <= kMaxGroups);
}

// Tiles 0 to 3: products; 4: queries; 5: codes.
TARGET void configure(std::size_t d4) {
  const std::size_t groups = d4 < kTileGroups ? d4 : kTileGroups;
  TileConfig config;
  for (int tile = 0; tile < 4; ++tile) {
    config.row_bytes[tile] = 64;
    config.rows[tile] = 16;
  }
  config.row_bytes[4] = static_cast<std::uint16_t>(4 * groups);
  config.rows[4] = 16;
  config.row_bytes[5] = 64;
  config.rows[5] = static_cast<std::uint8_t>(groups);
  _tile_loadconfig(&config);
}

// n_blocks of 1 to 4; words: 16 rows of 4 * d4 bytes.
TARGET_INLINE void multiply(const std::uint8_t* codes, std::size_t d4, std::size_t n_blocks,
                            const std::int8_t* words, Products& products) {
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  const std::size_t block = d4 * 64;
  const auto row = static_cast<int>(d4 * 4);
  for (std::size_t j = 0; j < d4; j += kTileGroups) {
    _tile_loadd(4, words + 4 * j, row);
    const std::uint8_t* c = codes + j * 64;
    _tile_loadd(5, c, 64);
    _tile_dpbsud(0, 4, 5);
    if (n_blocks > 1) {
      _tile_loadd(5, c + block, 64);
      _tile_dpbsud(1, 4, 5);
    }
    if (n_blocks > 2) {
      _tile_loadd(5, c + 2 * block, 64);
      _tile_dpbsud(2, 4, 5);
    }
    if (n_blocks > 3) {
      _tile_loadd(5, c + 3 * block, 64);
      _tile_dpbsud(3, 4, 5);
    }
  }
  _tile_stored(0, products.of[0], 64);
  if (n_blocks > 1) _tile_stored(1, products.of[1], 64);
  if (n_blocks > 2) _tile_stored(2, products.of[2], 64);
  if (n_blocks > 3) _tile_stored(3, products.of[3], 64);
}

TARGET void rank(const std::uint8_t* codes, const float* norms, std::size_t n_blocks,
                 std::size_t d4, const Query* queries, std::size_t n_queries, float* scores,
                 std::size_t stride) {
  if (!fits_tiles(d4) || n_queries < kWorthATile) {
    avx512_kernels()->rank(codes, norms, n_blocks, d4, queries, n_queries, scores, stride);
    return;
  }
  configure(d4);
  Words words;
  Products products;
  for (std::size_t first = 0; first < n_queries; first += kRows) {
    const std::size_t n = n_queries - first < kRows ? n_queries - first : kRows;
    for (std::size_t q = 0; q < n; ++q)
      std::memcpy(words.of + q * d4 * 4, queries[first + q].high, d4 * 4);
    std::memset(words.of + n * d4 * 4, 0, (kRows - n) * d4 * 4);
    for (std::size_t b = 0; b < n_blocks; b += kBlocks) {
      const std::size_t n_b = n_blocks - b < kBlocks ? n_blocks - b : kBlocks;
      multiply(codes + b * d4 * 64, d4, n_b, words.of, products);
      for (std::size_t q = 0; q < n; ++q) {
        const Query& query = queries[first + q];
        const __m512 scale = _mm512_set1_ps(query.rank_scale);
        const __m512i offset = _mm512_set1_epi32(query.high_offset);
        float* out = scores + (first + q) * stride + b * kRows;
        for (std::size_t i = 0; i < n_b; ++i) {
          const __m512i sum = _mm512_sub_epi32(_mm512_load_si512(products.of[i][q]), offset);
          const __m512 norm = _mm512_loadu_ps(norms + (b + i) * kRows);
          _mm512_storeu_ps(out + i * kRows,
                           _mm512_sub_ps(norm, _mm512_mul_ps(scale, _mm512_cvtepi32_ps(sum))));
        }
      }
    }
  }
  _tile_release();
}

// Copies the words of up to 16 queries side by side.
TARGET_INLINE void gather(const std::uint8_t* records, std::size_t stride,
                          const std::uint32_t* members, std::size_t n, std::size_t d4,
                          std::int8_t* words) {
  if (d4 <= kTileGroups) {
    const auto mask = static_cast<__mmask16>((1u << d4) - 1);
    for (std::size_t q = 0; q < n; ++q) {
      const std::uint8_t* from = records + members[q] * stride + sizeof(FilterHead);
      _mm512_mask_storeu_epi32(words + q * d4 * 4, mask, _mm512_maskz_loadu_epi32(mask, from));
    }
  } else {
    for (std::size_t q = 0; q < n; ++q)
      std::memcpy(words + q * d4 * 4, records + members[q] * stride + sizeof(FilterHead), d4 * 4);
  }
}

template <std::size_t kN>
TARGET_INLINE std::uint64_t passing(const Products& products, std::size_t q, __m512 scale,
                                    __m512 limit, const __m512 (&norms)[kN]) {
  std::uint64_t rows = 0;
  for (std::size_t b = 0; b < kN; ++b) {
    const __m512 sum = _mm512_cvtepi32_ps(_mm512_load_si512(products.of[b][q]));
    const __m512 p = _mm512_fnmadd_ps(scale, sum, norms[b]);
    rows |= static_cast<std::uint64_t>(_mm512_cmp_ps_mask(p, limit, _CMP_LE_OQ)) << (kRows * b);
  }
  return rows;
}

template <std::size_t kN>
TARGET std::size_t filter_blocks(const Group& group, std::size_t d4, const std::uint8_t* records,
                                 std::size_t stride, const std::uint32_t* members,
                                 std::size_t n_members, Survivor* out) {
  // Gathered one step ahead: a tile load waits long for words that were only just stored.
  Words words[2];
  Products products;
  __m512 norms[kN];
  for (std::size_t b = 0; b < kN; ++b) norms[b] = _mm512_loadu_ps(group.norms + b * kRows);
  const auto count = [=](std::size_t first) {
    return n_members - first < kRows ? n_members - first : kRows;
  };
  std::size_t survivors = 0;
  gather(records, stride, members, count(0), d4, words[0].of);
  for (std::size_t first = 0; first < n_members; first += kRows) {
    const std::size_t n = count(first);
    const std::size_t next = first + kRows;
    if (next < n_members)
      gather(records, stride, members + next, count(next), d4, words[next / kRows % 2].of);
    multiply(group.codes, d4, kN, words[first / kRows % 2].of, products);
    // The queries come from all over the batch.
    for (std::size_t q = next + kRows; q < next + 2 * kRows && q < n_members; ++q)
      _mm_prefetch(reinterpret_cast<const char*>(records + members[q] * stride), _MM_HINT_T0);
    for (std::size_t q = 0; q < n; ++q) {
      FilterHead head;
      std::memcpy(&head, records + members[first + q] * stride, sizeof(head));
      // The products lack the -128 of each code: it moves to the limit. Rounding here is within
      // the slack that every limit has.
      const __m512 scale = _mm512_set1_ps(head.scale);
      const __m512 limit =
          _mm512_set1_ps(head.limit - head.scale * static_cast<float>(head.offset));
      const std::uint64_t rows = passing<kN>(products, q, scale, limit, norms) & group.valid;
      out[survivors].rows = rows;
      out[survivors].query = members[first + q];
      survivors += rows != 0 ? 1 : 0;
    }
  }
  return survivors;
}

TARGET std::size_t filter(const Group& group, std::size_t d4, const std::uint8_t* records,
                          std::size_t stride, const std::uint32_t* members, std::size_t n_members,
                          Survivor* out) {
  std::size_t tiled = n_members / kRows * kRows;
  if (n_members - tiled >= kWorthATile) tiled = n_members;
  if (!fits_tiles(d4)) tiled = 0;
  std::size_t survivors = 0;
  if (tiled > 0) {
    configure(d4);
    switch (group.n_blocks) {
      case 1:
        survivors = filter_blocks<1>(group, d4, records, stride, members, tiled, out);
        break;
      case 2:
        survivors = filter_blocks<2>(group, d4, records, stride, members, tiled, out);
        break;
      case 3:
        survivors = filter_blocks<3>(group, d4, records, stride, members, tiled, out);
        break;
      default:
        survivors = filter_blocks<4>(group, d4, records, stride, members, tiled, out);
        break;
    }
    _tile_release();
  }
  if (tiled < n_members)
    survivors += avx512_kernels()->filter(group, d4, records, stride, members + tiled,
                                          n_members - tiled, out + survivors);
  return survivors;
}

}  // namespace

const Kernels* amx_kernels() {
  static const Kernels kernels = [] {
    Kernels made = *avx512_kernels();
    made.rank = rank;
    made.filter = filter;
    return made;
  }();
  return &kernels;
}

}  // namespace delfsearch::kdtree

#else

namespace delfsearch::kdtree {
const Kernels* amx_kernels() { return nullptr; }
}  // namespace delfsearch::kdtree

#endif
