// The inner loop of reranking, one function per instruction set, all of which give the same bits:
// sum j of eight takes dimensions j, j + 8, ..., products and sums rounded one by one; then
// ((0 + 4) + (2 + 6)) + ((1 + 5) + (3 + 7)).
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(__x86_64__) || defined(_M_X64)
#define DELFSEARCH_X86 1
#endif

namespace delfsearch::rerank_kernels {

// A query and the quantizer, filled up with zeros to `padded`, the next multiple of 8 of d.
struct Query {
  const float* lower;
  const float* step;
  const double* values;
  std::size_t d;
  std::size_t padded;
};

// Squared distances to n rows of codes.
using Distances = void (*)(const Query& query, const std::uint8_t* const* rows, std::size_t n,
                           float* out);

Distances distances();  // that of this processor, or of DELFSEARCH_SIMD

void distances_scalar(const Query& query, const std::uint8_t* const* rows, std::size_t n,
                      float* out);
#ifdef DELFSEARCH_X86
void distances_avx2(const Query& query, const std::uint8_t* const* rows, std::size_t n, float* out);
void distances_avx512(const Query& query, const std::uint8_t* const* rows, std::size_t n,
                      float* out);
#endif

constexpr std::size_t kAhead = 8;  // rows asked for before they are read

// Asks for all lines of a row of d bytes.
inline void ask_for(const std::uint8_t* row, std::size_t d) {
#if defined(__GNUC__) || defined(__clang__)
  for (std::size_t at = 0; at < d; at += 64) __builtin_prefetch(row + at);
  __builtin_prefetch(row + d - 1);
#else
  (void)row;
  (void)d;
#endif
}

}  // namespace delfsearch::rerank_kernels
