// The matches of one candidate, brought into the form that the kernels read: positions merged into
// keypoints, equal pairs of keypoints kept once, ordered by query keypoint, centred, padded. Lives
// as scratch memory of one thread and is filled anew for each candidate.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "ransac_kernels.hpp"

namespace delfsearch::ransac {

// Floats on a 64-byte boundary. Growing loses the contents.
class AlignedFloats {
 public:
  void reserve(std::size_t n);
  float* data() const { return data_; }
  float& operator[](std::size_t i) const { return data_[i]; }

 private:
  std::unique_ptr<float[]> memory_;
  float* data_ = nullptr;
  std::size_t capacity_ = 0;
};

// Numbers positions: within the radius of an earlier one, they share its number.
class Keypoints {
 public:
  // xy: (n, 2); writes n numbers and returns how many different ones there are.
  std::uint32_t number(const float* xy, std::size_t n, float radius, const Kernels& kernels,
                       std::uint32_t* out);

 private:
  AlignedFloats x_, y_;
  std::vector<std::uint64_t> keys_;
  std::vector<std::uint32_t> numbers_;
};

struct Problem {
  // Returns false where fewer than three matches of different keypoints are left.
  bool prepare(const float* query_xy, const float* database_xy, const float* squared_distances,
               std::size_t n_rows, float min_separation, const Kernels& kernels);

  Points points() const;
  Pool pool() const;

  std::size_t n = 0;                          // matches kept
  std::uint32_t n_query = 0, n_database = 0;  // different keypoints
  float x0 = 0, y0 = 0, u0 = 0, v0 = 0;       // origin of the centred coordinates
  std::vector<std::uint32_t> rows;            // by match: its row in the input
  std::vector<std::uint32_t> query_keypoint, database_keypoint;  // by match
  AlignedFloats x, y, u, v;                                      // by match, padded

 private:
  void order_by_distance(const float* squared_distances, std::size_t n_rows);

  Keypoints numbering_;
  AlignedFloats pool_x_, pool_y_, pool_u_, pool_v_;
  std::vector<std::uint32_t> order_, row_query_, row_database_, starts_, last_seen_;
  std::vector<std::uint64_t> ends_;
  std::vector<std::uint32_t> groups_after_;
};

}  // namespace delfsearch::ransac
