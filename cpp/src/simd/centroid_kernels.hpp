// Floating-point inner loops of k-means and of product quantizers, one table of functions per
// instruction set. Lanes are centroids (or outputs), never terms of one sum: every value is a sum
// in rising order of its dimensions, products and sums rounded one by one, so all tables give the
// same bits.
//
// Centroids come packed: blocks of kBlock of them, each (dimension, centroid % kBlock), the last
// block filled up with centroids that nothing is nearest to.

#pragma once

#include <cstddef>
#include <cstdint>

#if defined(__x86_64__) || defined(_M_X64)
#define DELFSEARCH_X86 1
#endif

namespace delfsearch::centroids {

constexpr std::size_t kBlock = 32;

struct Packed {
  const float* values;      // n_blocks * d * kBlock
  const float* half_norms;  // n_blocks * kBlock, |c|^2 / 2; +inf behind the last centroid
  std::size_t d;
  std::size_t n_blocks;
};

// Centroids of the parts of a product quantizer: (part, dimension of the part, centroid).
struct Codebook {
  const float* values;
  std::size_t n_parts;
  std::size_t part_dimension;
  std::size_t n_centroids;  // a multiple of 16
};

struct Kernels {
  // For each of n rows, row i at x + i * stride: the centroid of the smallest |c|^2 / 2 - x c, ties
  // to the lower number, and that value.
  void (*nearest)(const Packed& to, const float* x, std::size_t stride, std::size_t n,
                  std::uint32_t* numbers, float* values);

  // out[c] = sum over i of (x_i - c_i)^2, all kBlock * n_blocks of them.
  void (*squared_distances)(const Packed& to, const float* x, float* out);

  // out = x A for n rows x (n, d), A (d, width) row-major, out (n, width), width a multiple of 16.
  void (*product)(const float* a, std::size_t d, std::size_t width, const float* x, std::size_t n,
                  float* out);

  // The squared distances of each part of x to its centroids: out is (n_parts, n_centroids), least
  // (n_parts) the least of each part.
  void (*part_tables)(const Codebook& codebook, const float* x, float* out, float* least);

  // The nearest centroid of each part, ties to the lower number.
  void (*part_nearest)(const Codebook& codebook, const float* x, std::uint8_t* numbers);

  // out[i * width + j] = whole[i * n + j] * step for rows i below n_rows, j below n; what is behind
  // n in a row of out is overwritten. width is n rounded up to a multiple of 16.
  void (*widen)(const std::int8_t* whole, std::size_t n_rows, std::size_t n, float step,
                std::size_t width, float* out);

  // least[16 g + lane] of each lane of group g, which has group_size times 16 values.
  void (*least_of_lanes)(const float* values, std::size_t n_groups, std::size_t group_size,
                         float* least);
};

const Kernels& kernels();  // those of this processor, or of DELFSEARCH_SIMD

const Kernels& kernels_scalar();
#ifdef DELFSEARCH_X86
const Kernels& kernels_avx2();
const Kernels& kernels_avx512();
#endif

}  // namespace delfsearch::centroids
