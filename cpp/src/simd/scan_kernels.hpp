// The inner loops of a scan over packed product codes, one table of functions per instruction set.
//
// may_pass is allowed to differ between instruction sets in nothing either: it compares exact
// integers. distances gives the same bits everywhere: table entries summed in the order of parts.
#pragma once

#include <cstddef>
#include <cstdint>

#include "delfsearch/product_code.hpp"

#if defined(__x86_64__) || defined(_M_X64)
#define DELFSEARCH_X86 1
#endif

namespace delfsearch::scan {

constexpr std::size_t kTogether = 4;  // queries that share the unpacking of a block

// 8-bit entries of one query, 2^bits a part, at most 255; a block passes where the saturating sum
// of some code's entries is at most limit.
struct ByteTable {
  const std::uint8_t* entries;
  std::uint8_t limit;
};

struct Passed {
  std::uint32_t block;
  std::uint32_t query;  // place in tables
  std::uint64_t codes;  // those within the limit, one bit each
};

struct Kernels {
  // Which blocks may hold a code within the limit, for up to kTogether tables; returns how many,
  // by rising block. out has room for n_blocks * n_tables.
  std::size_t (*may_pass)(const ProductCode& code, const std::uint8_t* blocks, std::size_t n_blocks,
                          const ByteTable* tables, std::size_t n_tables, Passed* out);

  // Distances of the 64 codes of a block: sums of float entries, 2^bits a part. Returns which are
  // at most limit, one bit each.
  std::uint64_t (*distances)(const ProductCode& code, const std::uint8_t* block,
                             const float* entries, float limit, float* out);
};

const Kernels& kernels();  // those of this processor, or of DELFSEARCH_SIMD

const Kernels& kernels_scalar();
#ifdef DELFSEARCH_X86
const Kernels& kernels_avx2();
const Kernels& kernels_avx512();
#endif

}  // namespace delfsearch::scan
