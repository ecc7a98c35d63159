// The inner loops of a scan over packed product codes, one table of functions per instruction set.
//
// Nothing differs between instruction sets but the order in which a call appends what it found:
// bytes are compared as integers, and distances are sums of table entries in the order of parts.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "delfsearch/product_code.hpp"

#if defined(__x86_64__) || defined(_M_X64)
#define DELFSEARCH_X86 1
#endif

namespace delfsearch::scan {

constexpr std::size_t kTogether = 4;  // queries that share the unpacking of a block
constexpr std::size_t kRoom = 16;     // entries that may be written behind the last one found

// So many keys are ranked by comparing all pairs; sorting costs less for more.
constexpr std::size_t kMostRanked = 400;

#if defined(__GNUC__) || defined(__clang__)
#define DELFSEARCH_ALWAYS_INLINE inline __attribute__((always_inline))
#else
#define DELFSEARCH_ALWAYS_INLINE inline
#endif

DELFSEARCH_ALWAYS_INLINE void ask_for(const void* from, std::size_t n_bytes) {
#if defined(__GNUC__) || defined(__clang__)
  // Else compilers leave out calls of functions that do nothing but this.
  __asm__ volatile("");
  for (std::size_t at = 0; at < n_bytes; at += 64)
    __builtin_prefetch(static_cast<const std::uint8_t*>(from) + at);
#else
  (void)from;
  (void)n_bytes;
#endif
}

// Asks for a share of the bytes that are scanned after these n blocks, as many again, at block b of
// them. Four pages go side by side: what reads ahead in a processor does so in a page at a time,
// and several together read a fifth faster.
DELFSEARCH_ALWAYS_INLINE void ask_for_share(const std::uint8_t* next, std::size_t b,
                                            std::size_t n_blocks, std::size_t block_bytes) {
  if (next == nullptr) return;
  constexpr std::size_t kSides = 4, kLine = 64;
  // Whole lines a block, so that the last blocks have nothing left to ask for.
  const std::size_t share = (block_bytes + kSides * kLine - 1) / (kSides * kLine) * kLine;
  const std::size_t all = n_blocks * block_bytes;
  const std::size_t side = (all + kSides * kLine - 1) / (kSides * kLine) * kLine;
  if (b * share >= side) return;
  for (std::size_t s = 0; s < kSides; ++s) {
    const std::size_t at = s * side + b * share;
    if (at < all) ask_for(next + at, std::min({share, side - b * share, all - at}));
  }
}
#undef DELFSEARCH_ALWAYS_INLINE

// 8-bit entries of one query, 2^bits a part, at most 255; a code passes where the saturating sum of
// its entries is at most limit.
struct ByteTable {
  const std::uint8_t* entries;
  std::uint8_t limit;
};

// Codes of a block, one bit each.
struct Passed {
  std::uint64_t codes;
  std::uint32_t block;
};

struct Kernels {
  // Codes looked at, for each of k wanted, from which on it pays to compare bytes first.
  std::size_t filter_after;

  // Which codes may be within the limit, for up to kTogether tables: out[q] gets the blocks that
  // hold any, rising, and has room for n_blocks; counts[q] says how many. `next` is what is scanned
  // after them, or null.
  void (*may_pass)(const ProductCode& code, const std::uint8_t* blocks, std::size_t n_blocks,
                   const std::uint8_t* next, const ByteTable* tables, std::size_t n_tables,
                   Passed* const* out, std::size_t* counts);

  // Distances of the codes of n blocks that `which` names, counted from `blocks`: sums of float
  // entries, 2^bits a part. Those at most limit are appended with their places, counted from
  // first_place at `blocks`; returns how many. There is room for 64 n + kRoom.
  std::size_t (*distances)(const ProductCode& code, const std::uint8_t* blocks, const Passed* which,
                           std::size_t n, const float* entries, float limit,
                           std::uint32_t first_place, float* values, std::uint32_t* places);

  // bytes = (entries - least of their part) * scale, rounded down, at most 255.
  void (*round_down)(const ProductCode& code, const float* entries, const float* least, float scale,
                     std::uint8_t* bytes);

  // Of each leaf the sum over parts of the least entry of those present (inverted_file.hpp).
  void (*leaf_bounds)(const ProductCode& code, const std::uint32_t* present, std::size_t n_leaves,
                      const float* entries, float* bounds);

  // The place that each of n keys, below 2^31, has when they rise; equal keys keep their order. For
  // kMostRanked keys at most. There is kRoom behind keys and ranks.
  void (*ranks)(std::uint32_t* keys, std::size_t n, std::uint32_t* ranks);
  // The least and the greatest of n >= 1 values.
  void (*range)(const float* values, std::size_t n, float* least, float* greatest);
  // How many values are at most limit.
  std::size_t (*count_within)(const float* values, std::size_t n, float limit);
  // Keeps these, with their places, in their order; returns how many. There is kRoom behind n.
  std::size_t (*keep_within)(float* values, std::uint32_t* places, std::size_t n, float limit);
};

const Kernels& kernels();  // those of this processor, or of DELFSEARCH_SIMD

const Kernels& kernels_scalar();
#ifdef DELFSEARCH_X86
const Kernels& kernels_avx2();
const Kernels& kernels_avx512();
#endif

}  // namespace delfsearch::scan
