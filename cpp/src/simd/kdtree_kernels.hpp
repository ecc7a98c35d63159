// The inner loops of the KD-tree search, one implementation per instruction set. Internal: sizes
// and capacities are the caller's business.
//
// filter is allowed to differ between instruction sets: it may pass too much, never too little.
// Everything else must give the same bytes.
#pragma once

#include <cstddef>
#include <cstdint>

namespace delfsearch::kdtree {

// One query as the kernels see it. V = 256 * high + low, exactly; arrays have d4 * 4 elements.
struct Query {
  const std::int8_t* high;   // in [-127, 127]; rank takes -128 too
  const std::int8_t* low;    // in [-128, 127]
  const std::int16_t* fine;  // V
  std::int32_t high_offset;  // 128 * sum of high
  std::int32_t fine_offset;  // 128 * sum of V
  float scale;               // 2 * unit: P = norm - scale * sum V (c - 128)
  float rank_scale;          // 256 * scale
  float limit;               // rows with P <= limit are kept
  std::uint32_t count;
  float* pending;              // P of the rows kept so far
  std::uint32_t* pending_row;  // and their places in the leaf order
};

// What filter needs of a query, packed so that 52 dimensions fit one cache line: a row passes where
// norm - scale * sum word (c - 128) <= limit. d4 * 4 words of int8, about V / coarse_step, follow.
struct FilterHead {
  std::int32_t offset;  // 128 * sum of words
  float scale;
  float limit;
};

// Rows of the group that may belong to a query's neighbours, one bit each.
struct Survivor {
  std::uint64_t rows;
  std::uint32_t query;
};

// Up to 4 consecutive blocks of rows.
struct Group {
  const std::uint8_t* codes;
  const float* norms;
  std::uint32_t first_row;
  std::uint32_t n_blocks;
  std::uint64_t valid;  // rows that are meant, one bit each
};

// What `nearest` keeps for a row. Floats that are not negative order like their bits, the last of
// which give way to a number.
constexpr std::size_t kNearest = 8;
constexpr std::int32_t kNumberMask = 127;

struct Kernels {
  // |V - coarse_step * coarse| <= coarse_step / 2 and |coarse| <= 32512 / coarse_step, rounded.
  int coarse_step;

  // scores[q * stride + row] = norm - rank_scale * sum high (c - 128), for all rows of all blocks.
  void (*rank)(const std::uint8_t* codes, const float* norms, std::size_t n_blocks, std::size_t d4,
               const Query* queries, std::size_t n_queries, float* scores, std::size_t stride);

  // Writes a survivor for each query with a row that passes; returns how many. out has room for
  // all.
  // Query q's FilterHead lies at records + q * stride.
  std::size_t (*filter)(const Group& group, std::size_t d4, const std::uint8_t* records,
                        std::size_t stride, const std::uint32_t* members, std::size_t n_members,
                        Survivor* out);

  // Appends the survivor's rows with P <= limit to the query's pending list, which has room for 64
  // and 16 more.
  void (*refine)(const Group& group, std::size_t d4, std::uint64_t rows, Query& query);

  // The k-th smallest value, 1 <= k <= n; no NaN. With spare > 0 any limit that k to k + spare
  // values do not exceed, which is found sooner, and which may differ between instruction sets.
  float (*kth_smallest)(const float* values, std::size_t n, std::size_t k, std::size_t spare);

  // Moves the values <= limit (with their rows) to the front of the output, in order; returns how
  // many. Output may be the input. Room for 16 more behind the output. rows == nullptr stands for
  // 0, 1, 2, ...
  std::size_t (*keep)(const float* values, const std::uint32_t* rows, std::size_t n, float limit,
                      float* out_values, std::uint32_t* out_rows);

  // Sorts distinct keys.
  void (*sort_keys)(std::uint64_t* keys, std::size_t n);

  // For each row below stride (a multiple of 16) the kNearest smallest of max(0, scores[i * stride
  // + row] + bases[i]) over i < n <= kNumberMask + 1, its last bits replaced by i: in keys[c *
  // stride + row], rising with c; the largest integer where n is smaller.
  void (*nearest)(const float* scores, std::size_t stride, const float* bases, std::size_t n,
                  std::int32_t* keys);
};

const Kernels& kernels();  // those of this processor, or of DELFSEARCH_SIMD

const Kernels& scalar_kernels();
const Kernels* avx2_kernels();  // nullptr where this build has none
const Kernels* avx512_kernels();
const Kernels* amx_kernels();
const Kernels* neon_kernels();  // also where the processor has no dot product

}  // namespace delfsearch::kdtree
