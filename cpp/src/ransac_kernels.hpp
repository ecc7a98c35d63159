// The inner loops of RANSAC, one table of functions per instruction set. All tables give the same
// bits: only IEEE single-precision +, -, *, / and sqrt, in one order, none of them fused.
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(__x86_64__) || defined(_M_X64)
#define DELFSEARCH_X86 1
#endif

namespace delfsearch::ransac {

constexpr int kBatch = 64;         // hypotheses drawn together,
constexpr int kSimilarities = 32;  // these from pairs of matches, the others from triples
constexpr std::size_t kWord = 64;  // matches whose verdicts share one mask word

// Where samples are drawn from: the matches by rising descriptor distance.
struct Pool {
  const float* x;
  const float* y;
  const float* u;
  const float* v;
  std::uint32_t n;
};

struct DrawLimits {
  float min_baseline2;  // squared distance between two sampled positions, either photo
  float min_det, max_det;
  float max_norm2_over_det;
  float min_cosine;  // of the rotation
  int any_rotation;  // 1: min_cosine does not matter
};

// (x, y) -> (a x + b y + c, d x + e y + f); inliers have a squared residual of at most t2. Vectors
// are written whole, hence the room behind the last.
struct Hypotheses {
  float a[kBatch + 16], b[kBatch + 16], c[kBatch + 16];
  float d[kBatch + 16], e[kBatch + 16], f[kBatch + 16];
  float t2;
};

// The matches ordered by query keypoint and padded to whole words with points at infinity.
struct Points {
  const float* x;
  const float* y;
  const float* u;
  const float* v;
  const std::uint64_t* ends;          // per word: bit set at the last match of a query keypoint
  const std::uint32_t* groups_after;  // per word: upper bound of query keypoints in later words
  std::size_t n_words;
  std::size_t tail;  // matches of the last word that may count, a multiple of 16
};

struct Kernels {
  // Draws one batch with the counters first..first + kBatch - 1 and keeps the plausible maps, in
  // order, at the front of out; returns how many.
  int (*draw)(const Pool& pool, std::uint64_t key, std::uint32_t first, const DrawLimits& limits,
              Hypotheses& out);
  // The first hypothesis at or after `start` that more than `floor` query keypoints agree with
  // (its inliers go to mask, n_words words), or `count` where there is none.
  int (*next_better)(const Points& points, const Hypotheses& hypotheses, int start, int count,
                     int floor, std::uint64_t* mask);
  // The first of n positions (padded to a multiple of 16) within sqrt(radius2) of (x, y), or n.
  std::uint32_t (*first_near)(const float* xs, const float* ys, std::uint32_t n, float x, float y,
                              float radius2);
};

const Kernels& kernels_scalar();
#ifdef DELFSEARCH_X86
const Kernels& kernels_avx2();
const Kernels& kernels_avx512();
#endif

// Bits of `ends` whose run of matches (from after the previous end, or from bit 0) holds a bit of
// `mask`. `ends` has bit 63 set. The addition carries from any set bit to the end of its run.
inline std::uint64_t runs_hit(std::uint64_t mask, std::uint64_t ends) {
  return (((mask & ~ends) + ~ends) | mask) & ends;
}

}  // namespace delfsearch::ransac
